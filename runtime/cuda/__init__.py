"""CUDA's runtime library, as far as the engine's own memory on a device needs it, and TensorRT's version.

ONNX Runtime runs the graphs.
"""
