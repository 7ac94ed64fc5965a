"""Ollama's requests as types. Options that set up another server's memory and threads are accepted without effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from qwonnx.handlers.chat.sampling_fields import sampling_struct
from qwonnx.handlers.chat.tools import MAX_TOOLS, FunctionName
from qwonnx.handlers.chat.validation import Strict
from qwonnx.runtime.sampling.parameter import LARGE, Api

Name = Annotated[str, Meta(min_length=1, max_length=256)]


if TYPE_CHECKING:

    class _Sampled(Strict):
        """Sampling parameters."""
else:
    _Sampled = sampling_struct(Api.OLLAMA)


class Options(_Sampled, kw_only=True):
    """How tokens are chosen; values out of range are refused."""

    num_predict: Annotated[int, Meta(ge=-2, lt=LARGE)] | None = None  # -1 and -2: as many as fit
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None

    # Without effect.
    num_ctx: Any = None
    num_keep: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    main_gpu: Any = None
    num_thread: Any = None
    numa: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    vocab_only: Any = None
    logits_all: Any = None
    embedding_only: Any = None
    repeat_last_n: Any = None
    penalize_newline: Any = None

    # Accepted with the value that changes nothing: see requests.py.
    mirostat: int | None = None
    mirostat_tau: Any = None
    mirostat_eta: Any = None
    typical_p: float | None = None
    tfs_z: float | None = None


class CalledFunction(Strict):
    name: str
    arguments: dict[str, Any]
    index: int | None = None


class MessageCall(Strict):
    """A call that the assistant made in an earlier turn."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class Message(Strict):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[MessageCall] | None = None
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None


class FunctionDefinition(Strict):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    function: FunctionDefinition
    type: Literal["function"] | None = None
    items: Any = None


class _Request(Strict):
    """What chats and texts share. stream: true unless it is false."""

    model: Name
    stream: bool | None = None
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: bool | Literal["low", "medium", "high"] | None = None
    keep_alive: Any = None  # without effect: the model stays
    logprobs: bool | None = None  # refused if true
    top_logprobs: int | None = None
    truncate: bool | None = None  # without effect: a prompt that is too long is refused
    shift: bool | None = None


class ChatRequest(_Request, kw_only=True):
    """The body of POST /api/chat."""

    messages: list[Message] | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None


class GenerateRequest(_Request, kw_only=True):
    """The body of POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None

    # Refused unless they are empty.
    suffix: str | None = None
    template: str | None = None
    images: list[Any] | None = None
    context: list[Any] | None = None


class ShowRequest(Strict):
    """The body of POST /api/show."""

    model: str | None = None
    name: str | None = None  # its older name
    verbose: bool | None = None
