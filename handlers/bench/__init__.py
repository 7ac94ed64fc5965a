"""What `qwonnx bench` measures. Standard library only, so that a measured server shares the machine with little."""
