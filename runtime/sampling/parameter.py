"""What is declared of a sampling parameter, once.

The fields of SamplingParams (params.py) carry these declarations. The request fields of each API, the options of the
command line, the keywords of LLM.chat() and the table in docs/sampling.md are made from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from enum import Enum
from typing import Annotated, Any

from msgspec import Meta, Struct

MAX_BIASED_TOKENS = 300
MAX_STOP_TOKENS = 64
LARGE = 1 << 31
"""Bound of numbers that reach numpy or ONNX Runtime."""

TokenId = Annotated[int, Meta(ge=0, lt=LARGE)]
Bias = Annotated[float, Meta(ge=-100, le=100)]

_DECLARATION = "declaration"


class Api(Enum):
    """An API, by the paths of its requests."""

    OPENAI = "/v1/chat/completions, /v1/completions"
    RESPONSES = "/v1/responses"
    ANTHROPIC = "/v1/messages"
    OLLAMA = "/api/chat, /api/generate"


class Kind(Enum):
    """The kind of a value."""

    NUMBER = "number"
    WHOLE = "whole number"
    SWITCH = "true or false"
    TEXTS = "texts"
    TOKENS = "token ids"
    BIASES = "token ids with numbers"


_TYPES: Mapping[Kind, Any] = {
    Kind.NUMBER: float,
    Kind.WHOLE: int,
    Kind.SWITCH: bool,
    Kind.TEXTS: list[str],
    Kind.TOKENS: list[TokenId],
    Kind.BIASES: dict[TokenId, Bias],
}
_TAKEN: Mapping[Kind, Callable[[Any], Any]] = {Kind.TEXTS: tuple, Kind.TOKENS: tuple, Kind.BIASES: dict}


class Parameter(Struct, frozen=True):
    """A declaration.

    kind: of its values.
    help: what it does, in one line without Markdown.
    names: its name in each API that has it.
    bounds: of a value in a request; None: any of its kind.
    other_bounds: of an API whose bounds differ.
    low, high: bounds of a number in SamplingParams, both included; None: SamplingParams checks it in its own words.
    by_hand: the APIs declare and read this field themselves, because each has another name or form for it.
    recommended: a checkpoint's generation_config.json may have it.
    keeps_all: a request's number below 1 is None in SamplingParams.
    """

    kind: Kind
    help: str
    names: Mapping[Api, str]
    bounds: Meta | None = None
    other_bounds: Mapping[Api, Meta] = {}
    low: float | None = None
    high: float | None = None
    by_hand: bool = False
    recommended: bool = False
    keeps_all: bool = False

    def type_in(self, api: Api | None) -> Any:
        """The type of the field of a request, for msgspec; None: of a request of Python."""
        kind = _TYPES[self.kind]
        bounds = self.bounds if api is None else self.other_bounds.get(api, self.bounds)
        return kind if bounds is None else Annotated[kind, bounds]

    def taken(self, value: Any) -> Any:
        """The value of SamplingParams for a value of a request."""
        if self.keeps_all:
            return value if value > 0 else None
        return _TAKEN.get(self.kind, _same)(value)


def everywhere(name: str, **names: str) -> dict[Api, str]:
    """One name in every API, but for the given ones, such as ollama="repeat_penalty"."""
    return {api: names.get(api.name.lower(), name) for api in Api}


def in_apis(name: str, *apis: Api) -> dict[Api, str]:
    """One name in these APIs."""
    return dict.fromkeys(apis, name)


def declared(default: Any, kind: Kind, help_line: str, names: Mapping[Api, str], **more: Any) -> Any:
    """A field of SamplingParams with its declaration.

    Args:
        default: of the field; a dictionary is copied.
        kind, help_line, names: see Parameter.
        more: the other fields of Parameter.
    """
    metadata = {_DECLARATION: Parameter(kind, help_line, names, **more)}
    if isinstance(default, dict):  # it has no hash; equality counts it
        return field(default_factory=lambda: dict(default), hash=False, metadata=metadata)
    return field(default=default, metadata=metadata)


def declaration_of(metadata: Mapping[Any, Any]) -> Parameter | None:
    """The declaration in the metadata of a field; None: it is no parameter that users set."""
    return metadata.get(_DECLARATION)


def _same(value: Any) -> Any:
    return value
