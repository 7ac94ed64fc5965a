"""CUDA's runtime library, as far as the engine's own memory on a device needs it; TensorRT's version; what is missing.

ONNX Runtime runs the graphs.
"""
