"""Run an exported artifact: tokens in, tokens and text out.

with Engine.open("artifact") as engine:
    for output in engine.generate(engine.tokenizer.encode("Hello"), SamplingParams(max_tokens=16)):
        print(output.text, end="")

Names are imported on first use, so that settings and errors can be imported without ONNX Runtime and numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qwonnx.runtime import telemetry as telemetry  # first: ONNX Runtime reads its switch when imported

if TYPE_CHECKING:
    from qwonnx.runtime.engine.engine import Engine as Engine
    from qwonnx.runtime.engine.request import FinishReason as FinishReason
    from qwonnx.runtime.engine.request import RequestOutput as RequestOutput
    from qwonnx.runtime.sampling.guide import Guide as Guide
    from qwonnx.runtime.sampling.params import SamplingParams as SamplingParams
    from qwonnx.runtime.settings import RuntimeSettings as RuntimeSettings

_MODULES = {
    "Engine": "engine.engine",
    "FinishReason": "engine.request",
    "Guide": "sampling.guide",
    "RequestOutput": "engine.request",
    "RuntimeSettings": "settings",
    "SamplingParams": "sampling.params",
}
__all__ = ["Engine", "FinishReason", "Guide", "RequestOutput", "RuntimeSettings", "SamplingParams"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"qwonnx.runtime.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
