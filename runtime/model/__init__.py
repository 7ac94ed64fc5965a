"""An artifact's files and its graph: opened, checked, and run one step at a time.

Read placement, session (the only module that runs ONNX Runtime), files, inputs, runner. artifact_placement, tensorrt
and rtx place graphs with NVIDIA's compilers, and compiling builds engines. This folder does not know requests, text or
the memory of states: the runner binds rows through runtime/cache/buffers.
"""
