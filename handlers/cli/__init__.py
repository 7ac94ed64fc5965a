"""The command line: one file per command, its options, its tables and its one-line errors.

Read main, then any command. Heavy imports (torch, ONNX Runtime) are inside functions, so that --help is quick.
"""
