"""Writes one answer in Ollama's objects, as a whole or as lines."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET

from qwonnx.handlers.chat.choices import Numbered
from qwonnx.handlers.chat.parts import Begun, End, EndReason, Part
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.ollama import errors
from qwonnx.handlers.ollama.objects import AnswerMessage, Call, ChatAnswer, DoneReason, FunctionCall, TextAnswer
from qwonnx.runtime.sampling.entropy import fresh_id
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened, ContentDelta, ReasoningDelta
from qwonnx.runtime.text.cut_json import object_of


class AnswerWriter:
    """One answer.

    Args:
        model: its name in the answer.
        is_chat: write it as a message, otherwise as a text.
    """

    keep_alive = b""  # its clients read every line as JSON

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self.id = fresh_id()
        self._model = model
        self._is_chat = is_chat
        self._asked_at = self._begun_at = time.monotonic_ns()
        self._calls: list[Call] = []
        self._arguments: list[str] = []  # of the open call

    def piece(self, part: Part, *, stream: bool) -> bytes:
        """What this part adds to the answer."""
        match part:
            case ContentDelta(text) | ReasoningDelta(text) | ArgumentsDelta(text):
                return self._line(text, "", []) if stream else msgspec.json.encode(text)[1:-1]
            case CallOpened(name):
                return msgspec.json.encode(name) + b'{"function":{"name":,"arguments":,"index":}},'
            case _:
                return b""

    async def whole(self, parts: AsyncIterator[Part | Numbered]) -> bytes:
        """The answer as one object.

        Raises:
            ServiceError: raised by `parts`.
        """
        content, thinking, calls = list[str](), list[str](), list[Call]()
        end: End | None = None
        async for part in parts:
            match part:
                case ContentDelta(text):
                    content.append(text)
                case ReasoningDelta(text):
                    thinking.append(text)
                case End():
                    calls += self._call_of(part)
                    end = part
                case _:
                    calls += self._call_of(part)
        assert end is not None, "an answer without an end raises"
        return self._object("".join(content), "".join(thinking), calls, end)

    async def events(self, parts: AsyncIterator[Part | Numbered]) -> AsyncGenerator[bytes, None]:
        """Lines; the last one is done, or has an error."""
        try:
            async for part in parts:
                match part:
                    case ContentDelta(text):
                        yield self._line(text, "", [])
                    case ReasoningDelta(text):
                        yield self._line("", text, [])
                    case End():
                        if calls := self._call_of(part):
                            yield self._line("", "", calls)
                        yield self._object("", "", [], part) + b"\n"
                    case _:
                        if calls := self._call_of(part):
                            yield self._line("", "", calls)
        except ServiceError as error:
            yield msgspec.json.encode(errors.body(error)) + b"\n"

    def _call_of(self, part: Part | Numbered) -> list[Call]:
        """The call that this part completes. One that is cut off has the arguments that there are."""
        match part:
            case Begun():
                self._begun_at = time.monotonic_ns()
            case CallOpened(name):
                self._calls.append(Call(FunctionCall(name, {}, len(self._calls))))
                self._arguments = [""]
            case ArgumentsDelta(text) if self._arguments:
                self._arguments.append(text)
            case CallClosed() | End() if self._arguments:
                call, text = self._calls[-1], "".join(self._arguments)
                call.function.arguments = object_of(text) or {}
                self._arguments = []
                return [call]
        return []

    def _line(self, content: str, thinking: str, calls: list[Call]) -> bytes:
        return self._object(content, thinking, calls, None) + b"\n"

    def _object(self, content: str, thinking: str, calls: list[Call], end: End | None) -> bytes:
        created = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        shared: dict[str, Any] = {"model": self._model, "created_at": created, "done": end is not None}
        answer: ChatAnswer | TextAnswer
        if self._is_chat:
            answer = ChatAnswer(message=AnswerMessage(content, thinking or UNSET, calls or UNSET), **shared)
        else:
            answer = TextAnswer(response=content, thinking=thinking or UNSET, **shared)
        if end is not None:
            now = time.monotonic_ns()
            answer.done_reason = _reason(end)
            answer.total_duration = now - self._asked_at
            answer.load_duration = 0
            answer.prompt_eval_count = end.usage.num_prompt_tokens
            answer.prompt_eval_duration = self._begun_at - self._asked_at
            answer.eval_count = end.usage.num_generated_tokens
            answer.eval_duration = now - self._begun_at
        return msgspec.json.encode(answer)


def _reason(end: End) -> DoneReason:
    return "length" if end.reason is EndReason.LENGTH else "stop"
