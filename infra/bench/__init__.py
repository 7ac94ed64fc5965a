from qwonnx.runtime import telemetry as telemetry  # first: some benchmarks import ONNX Runtime before qwonnx
