"""Run an exported artifact: tokens in, tokens and text out.

with Engine.open("artifact") as engine:
    for output in engine.generate(engine.tokenizer.encode("Hello"), SamplingParams(max_tokens=16)):
        print(output.text, end="")

`Engine` is imported on first use, so that settings and errors can be imported without ONNX Runtime.
"""

from typing import TYPE_CHECKING, Any

from qwonnx.runtime import telemetry as telemetry  # first: ONNX Runtime reads its switch when imported
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings

if TYPE_CHECKING:
    from qwonnx.runtime.engine.engine import Engine as Engine

__all__ = ["Engine", "FinishReason", "Guide", "RequestOutput", "RuntimeSettings", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from qwonnx.runtime.engine import engine

        return engine.Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
