"""CUDA's runtime library, as far as the engine's own memory on a device needs it. ONNX Runtime runs the graphs."""
