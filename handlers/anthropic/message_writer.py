"""Writes one answer in Anthropic's objects, as a whole or as events."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from qwonnx.handlers.anthropic import errors
from qwonnx.handlers.anthropic.message_objects import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Content,
    Delta,
    Event,
    InputJsonDelta,
    MessageDelta,
    MessageObject,
    MessageStart,
    MessageStop,
    Ping,
    SignatureDelta,
    StopFields,
    StopReason,
    TextContent,
    TextDelta,
    ThinkingContent,
    ThinkingDelta,
    ToolUseContent,
    Usage,
)
from qwonnx.handlers.chat import parts as answer
from qwonnx.handlers.chat.parts import Begun, ContentLogprobs, End, EndReason, Part, Resumed
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http import sse
from qwonnx.runtime.sampling.entropy import fresh_id
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened, ContentDelta, ReasoningDelta
from qwonnx.runtime.text.cut_json import object_of

_STOP_REASONS: dict[EndReason, StopReason] = {
    EndReason.STOP: "end_turn",
    EndReason.LENGTH: "max_tokens",
    EndReason.CALLS: "tool_use",
}
# A message begins with the tokens that the cache had; a client of a long prompt learns sooner that its answer comes.
_START_SECONDS = 0.5
_MOST_BLOCKS = 999_999  # an index of this length


class MessageWriter:
    """One answer.

    Args:
        model: its name in the answer.
    """

    def __init__(self, model: str) -> None:
        self.id = f"msg_{fresh_id()}"
        self._model = model

    @property
    def keep_alive(self) -> bytes:
        return _encoded(Ping())

    def piece(self, part: Part, *, stream: bool) -> bytes:
        """What this part adds to the answer; ids and indices are new ones of the same length."""
        if not stream:
            return _whole_piece(part)
        blocks = _Blocks(_MOST_BLOCKS)
        return b"".join(_encoded(event) for event in (*blocks.add(part), *blocks.close()))

    async def whole(self, parts: AsyncIterator[Part]) -> bytes:
        """A message.

        Raises:
            ServiceError: raised by `parts`.
        """
        content: list[Content] = []
        end: End | None = None
        arguments: list[str] = []  # of each call
        async for part in parts:
            last = content[-1] if content else None
            match part:
                case ReasoningDelta(text):
                    if isinstance(last, ThinkingContent):
                        last.thinking += text
                    else:
                        content.append(ThinkingContent(text, ""))
                case ContentDelta(text):
                    if isinstance(last, TextContent):
                        last.text += text
                    else:
                        content.append(TextContent(text))
                case CallOpened(name):
                    content.append(ToolUseContent(_call_id(), name, {}))
                    arguments.append("")
                case Resumed(_, str(name)):  # the rest of a call that another request has begun
                    content.append(ToolUseContent(_call_id(), name, {}))
                    arguments.append("")
                case ArgumentsDelta(text):
                    arguments[-1] += text
                case End():
                    end = part
                case Begun() | CallClosed() | Resumed() | ContentLogprobs():
                    pass
        assert end is not None, "an answer without an end raises"
        texts = iter(arguments)
        for block in content:
            if isinstance(block, ThinkingContent):
                block.signature = _signature(block.thinking)
            elif isinstance(block, ToolUseContent):
                block.input = object_of(next(texts)) or {}  # it may be cut off
        usage = _usage(end.usage)
        message = MessageObject(self.id, self._model, content, _stop_reason(end), end.stop_string, usage)
        return msgspec.json.encode(message)

    async def events(self, parts: AsyncIterator[Part]) -> AsyncGenerator[bytes, None]:
        """message_start to message_stop; the last event is that or an error."""
        try:
            async with aclosing(self._events(parts)) as events:
                async for event in events:
                    yield _encoded(event)
        except ServiceError as error:
            yield sse.named_event("error", errors.body(error))

    async def _events(self, parts: AsyncIterator[Part]) -> AsyncGenerator[Event, None]:
        first = asyncio.ensure_future(_next(parts))
        try:
            done, _ = await asyncio.wait((first,), timeout=_START_SECONDS)
            if not done:
                yield self._start(Usage(0, 0))
                yield Ping()
            begun = await first
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        if done:
            yield self._start(_usage_at_start(begun))
            yield Ping()
        blocks = _Blocks()
        async for part in parts:
            for event in blocks.add(part):
                yield event
            if isinstance(part, End):
                yield MessageDelta(StopFields(_stop_reason(part), part.stop_string), _usage(part.usage))
                yield MessageStop()

    def _start(self, usage: Usage) -> MessageStart:
        return MessageStart(MessageObject(self.id, self._model, [], None, None, usage))


class _Blocks:
    """The content blocks of a stream: one is open at a time.

    Args:
        index: of the first one.
    """

    def __init__(self, index: int = 0) -> None:
        self._index = index
        self._kind: type[Content] | None = None  # of the open one
        self._thoughts = hashlib.blake2b(digest_size=16)

    def add(self, part: Part) -> Iterator[Event]:
        """The events of a part. An End closes what is open."""
        match part:
            case ReasoningDelta(text):
                self._thoughts.update(text.encode())
                yield from self._in(ThinkingContent, ThinkingContent("", ""), ThinkingDelta(text))
            case ContentDelta(text):
                yield from self._in(TextContent, TextContent(""), TextDelta(text))
            case CallOpened(name):
                yield from self._open(ToolUseContent(_call_id(), name, {}))
            case ArgumentsDelta(text):
                if self._kind is ToolUseContent:  # another request may have opened it
                    yield BlockDelta(self._index, InputJsonDelta(text))
            case CallClosed() | End():
                yield from self.close()
            case Begun() | Resumed() | ContentLogprobs():
                pass

    def close(self) -> Iterator[Event]:
        """Close the open block, if there is one."""
        if self._kind is None:
            return
        if self._kind is ThinkingContent:
            yield BlockDelta(self._index, SignatureDelta(_signature_of(self._thoughts.digest())))
            self._thoughts = hashlib.blake2b(digest_size=16)
        yield BlockStop(self._index)
        self._kind = None
        self._index += 1

    def _in(self, kind: type[Content], empty: Content, delta: Delta) -> Iterator[Event]:
        if self._kind is not kind:
            yield from self._open(empty)
        yield BlockDelta(self._index, delta)

    def _open(self, block: Content) -> Iterator[Event]:
        yield from self.close()
        self._kind = type(block)
        yield BlockStart(self._index, block)


def _whole_piece(part: Part) -> bytes:
    match part:
        case ReasoningDelta(text) | ContentDelta(text):
            return msgspec.json.encode(text)[1:-1]
        case CallOpened(name):
            return msgspec.json.encode(ToolUseContent(_call_id(), name, {})) + b","
        case ArgumentsDelta(text):
            return text.encode()
        case Begun() | CallClosed() | Resumed() | ContentLogprobs() | End():
            return b""


async def _next(parts: AsyncIterator[Part]) -> Part:
    return await anext(parts)


def _encoded(event: Any) -> bytes:
    return sse.named_event(str(type(event).__struct_config__.tag), event)


def _stop_reason(end: End) -> StopReason:
    return "stop_sequence" if end.stop_string is not None else _STOP_REASONS[end.reason]


def _usage_at_start(part: Part) -> Usage:
    assert isinstance(part, Begun), "the first part"
    return Usage(part.num_prompt_tokens - part.num_cached_tokens, 0, part.num_cached_tokens)


def _usage(usage: answer.Usage) -> Usage:
    computed = usage.num_prompt_tokens - usage.num_cached_tokens
    return Usage(computed, usage.num_generated_tokens, usage.num_cached_tokens)


def _signature(thinking: str) -> str:
    return _signature_of(hashlib.blake2b(thinking.encode(), digest_size=16).digest())


def _signature_of(digest: bytes) -> str:
    """A text that clients send back. It says where the reasoning comes from; nothing depends on it."""
    return f"qwonnx-1-{digest.hex()}"


def _call_id() -> str:
    return f"toolu_{fresh_id()[:24]}"
