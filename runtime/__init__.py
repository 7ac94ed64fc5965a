"""Run an exported artifact: tokens in, tokens and text out.

with Engine.open("artifact") as engine:
    for output in engine.generate(engine.tokenizer.encode("Hello"), SamplingParams(max_tokens=16)):
        print(output.text, end="")
"""

from qwonnx.runtime.engine import Engine
from qwonnx.runtime.request import FinishReason, RequestOutput
from qwonnx.runtime.sampling_params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings

__all__ = ["Engine", "FinishReason", "RequestOutput", "RuntimeSettings", "SamplingParams"]
