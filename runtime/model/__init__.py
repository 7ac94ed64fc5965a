"""An artifact's files and its graph: opened, checked, and run one step at a time.

Read session (the only module that imports ONNX Runtime), files, inputs, runner. This folder does not know requests,
text or the memory of states: the runner binds rows through runtime/cache/buffers.
"""
