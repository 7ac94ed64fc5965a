"""qwonnx in Python. This file is installed as `qwonnx/__init__.py` (docs/decisions/0013).

    from qwonnx import LLM

    llm = LLM("qwen-int4")
    print(llm.chat("What is Germany called in Swahili?"))

LLM and AsyncLLM open a model and answer; Engine is the layer below, with tokens. Names are imported on first use, so
`import qwonnx` costs nothing, and a server starts as soon as without this file.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwonnx.handlers.library.answer import Answer as Answer
    from qwonnx.handlers.library.answer import ToolCall as ToolCall
    from qwonnx.handlers.library.async_llm import AsyncLLM as AsyncLLM
    from qwonnx.handlers.library.errors import AnswerError as AnswerError
    from qwonnx.handlers.library.llm import LLM as LLM
    from qwonnx.runtime.engine.engine import Engine as Engine
    from qwonnx.runtime.errors import QwonnxRuntimeError as QwonnxRuntimeError
    from qwonnx.runtime.sampling.params import SamplingParams as SamplingParams
    from qwonnx.runtime.settings import RuntimeSettings as RuntimeSettings

    __version__: str

_MODULES = {
    "Answer": "handlers.library.answer",
    "AnswerError": "handlers.library.errors",
    "AsyncLLM": "handlers.library.async_llm",
    "Engine": "runtime.engine.engine",
    "LLM": "handlers.library.llm",
    "QwonnxRuntimeError": "runtime.errors",
    "RuntimeSettings": "runtime.settings",
    "SamplingParams": "runtime.sampling.params",
    "ToolCall": "handlers.library.answer",
}
_PARTS = ("export", "handlers", "runtime")
__all__ = [
    "LLM",
    "Answer",
    "AnswerError",
    "AsyncLLM",
    "Engine",
    "QwonnxRuntimeError",
    "RuntimeSettings",
    "SamplingParams",
    "ToolCall",
    "__version__",
]


if not TYPE_CHECKING:  # a type checker shall find misspelt names

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(f"qwonnx.{_MODULES[name]}"), name)
        if name in _PARTS:
            return import_module(f"qwonnx.{name}")
        if name == "__version__":
            from importlib.metadata import version  # a server need not wait for it

            return version("qwonnx")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_PARTS, *(name for name in globals() if name.startswith("__"))})
