"""What the bundle runs on a machine with a GPU. It imports numpy, ONNX Runtime and the runtime only."""
