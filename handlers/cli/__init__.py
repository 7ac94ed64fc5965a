"""The command line: one file a command, its options, its tables and its one-line errors.

Read main, then any command. Heavy imports (torch, ONNX Runtime) stand inside functions, so that --help is quick.
"""
