"""Fields that a chat completion and a text completion share: how tokens are chosen, and what is sent of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

from msgspec import Meta

from qwonnx.handlers import errors
from qwonnx.handlers.chat.choices import MAX_CHOICES
from qwonnx.handlers.chat.sampling_fields import sampling_struct
from qwonnx.handlers.chat.validation import Strict
from qwonnx.runtime.sampling.parameter import LARGE, Api

Name = Annotated[str, Meta(min_length=1, max_length=256)]
PositiveInt = Annotated[int, Meta(ge=1, lt=LARGE)]

if TYPE_CHECKING:

    class SamplingFields(Strict):
        """The sampling parameters of both requests."""
else:
    SamplingFields = sampling_struct(Api.OPENAI)


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


class GenerationFields(SamplingFields, kw_only=True):
    """The fields. Those after "ours" are extensions that other servers of open models share."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: PositiveInt | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None

    # Ours.
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
