"""An artifact's files and its graph: opened, checked, and run one step at a time.

Read session (the only module that imports ONNX Runtime), files, inputs, runner. Nothing here knows requests or text, or
in which memory states lie: the runner binds rows through runtime/cache/buffers.
"""
