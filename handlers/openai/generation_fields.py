"""Fields that a chat completion and a text completion share: how tokens are chosen, and what is sent of them."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct

from qwonnx.handlers import errors
from qwonnx.handlers.chat.choices import MAX_CHOICES
from qwonnx.handlers.chat.validation import Strict

# Bound of numbers that reach numpy or ONNX Runtime.
_LARGE = 1 << 31

Name = Annotated[str, Meta(min_length=1, max_length=256)]
PositiveInt = Annotated[int, Meta(ge=1, lt=_LARGE)]
TokenId = Annotated[int, Meta(ge=0, lt=_LARGE)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]


_SAMPLING_FIELDS = (
    *("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("seed", "ignore_eos"),
)


class StructuredOutputs(Strict):
    """One form of the answer, as in vLLM's API."""

    json: dict[str, Any] | bool | str | None = None  # a schema, or its text
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class GenerationFields(Strict, kw_only=True):
    """The fields. Those after "ours" are extensions that other servers of open models share."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: PositiveInt | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=300)] | None = None

    # Ours.
    top_k: Annotated[int, Meta(ge=-1, lt=_LARGE)] | None = None  # -1 and 0 keep all
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    structured_outputs: StructuredOutputs | None = None

    # Without effect here.
    user: str | None = None


class _WithObfuscation(Protocol):
    @property
    def include_obfuscation(self) -> bool | None: ...


def check_stream_options(options: _WithObfuscation | None, *, is_stream: bool) -> None:
    """Check that there is a stream for its options, and none that is not supported.

    Raises:
        ServiceError: 400.
    """
    if options is None:
        return
    if not is_stream:
        raise errors.invalid("stream_options needs stream: set stream to true", "stream_options")
    if options.include_obfuscation:
        param = "stream_options.include_obfuscation"
        raise errors.invalid(f"{param} is not supported: leave it out", param, "unsupported_parameter")


def sampling_fields(request: Struct) -> dict[str, Any]:
    """Fields of SamplingParams that a request sets under the same names; it may lack some."""
    values = {name: getattr(request, name, None) for name in _SAMPLING_FIELDS}
    given = {name: value for name, value in values.items() if value is not None}
    if given.get("top_k", 1) < 1:
        given["top_k"] = None  # keep all
    return given
