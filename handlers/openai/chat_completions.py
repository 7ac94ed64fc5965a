"""POST /v1/chat/completions: translate the request and the answer; chat/ does the rest.

body -> chat_request -> engine_request -> chat/endpoint -> parts -> chat.completion
                                                                or chunks as events
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.chat.endpoint import respond
from qwonnx.handlers.chat.parts import Begun, End, EndReason, Part, Resumed, Usage
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http import sse
from qwonnx.handlers.http.body import BodyLimits, received
from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.openai import chat_request, engine_request, errors
from qwonnx.handlers.openai.chat_objects import (
    DONE,
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CompletionTokensDetails,
    CompletionUsage,
    Delta,
    FinishReasonName,
    FunctionCall,
    FunctionDelta,
    PromptTokensDetails,
    ToolCallDelta,
    ToolCallObject,
)
from qwonnx.handlers.openai.chat_protocol import ChatCompletionRequest
from qwonnx.runtime.sampling.entropy import fresh_id
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened, ContentDelta, ReasoningDelta

_FINISH_REASONS: dict[EndReason, FinishReasonName] = {
    EndReason.STOP: "stop",
    EndReason.LENGTH: "length",
    EndReason.CALLS: "tool_calls",
}


_MOST_CALLS = 999_999  # an index of this length
# The event loop itself decodes bodies up to this size, within a millisecond; a thread would add a tenth of one.
_SMALL_BYTES = 16 << 10


async def create_chat_completion(request: Request) -> Response:
    """The endpoint.

    Raises:
        ServiceError: the request is refused, or the answer failed before anything was sent.
        ClientDisconnect: the client disconnected first.
    """
    host: ModelHost = request.app.state.host
    limits: BodyLimits = request.app.state.bodies
    async with received(request, limits) as data:
        if len(data) <= _SMALL_BYTES:
            understood = _understood(data)
        else:
            understood = await asyncio.to_thread(_understood, data)
    chat = understood.chat
    engine = await engine_for(request)
    writer = CompletionWriter(chat, host.check_model(chat.model), host.fingerprint)
    try:
        return await respond(request, engine, understood.neutral, writer, stream=bool(chat.stream))
    except ServiceError as error:
        raise engine_request.in_openai_words(error) from error


@dataclass(frozen=True, slots=True)
class _Understood:
    """A request as OpenAI's client wrote it, and as the other layers take it."""

    chat: ChatCompletionRequest
    neutral: ChatRequest


def _understood(data: bytearray) -> _Understood:
    """Decode, check and translate a body.

    Raises:
        ServiceError: 400.
    """
    chat = chat_request.parse(data)
    return _Understood(chat, engine_request.neutral(chat))


class CompletionWriter:
    """Writes one answer in OpenAI's objects, as a whole or in chunks.

    Args:
        chat: the request.
        model: the model's name.
        fingerprint: of the artifact.
    """

    keep_alive = sse.COMMENT

    def __init__(self, chat: ChatCompletionRequest, model: str, fingerprint: str) -> None:
        self.id = f"chatcmpl-{fresh_id()}"
        self._created = int(time.time())
        self._model = model
        self._fingerprint = fingerprint
        self._with_usage = chat.stream_options is not None and chat.stream_options.include_usage

    def piece(self, part: Part, *, stream: bool) -> bytes:
        """What this part adds to the answer; a call's id is a new one of the same length."""
        match part:
            case ContentDelta(text):
                return self._chunk(Delta(content=text)) if stream else msgspec.json.encode(text)[1:-1]
            case ReasoningDelta(text):
                return self._chunk(Delta(reasoning_content=text)) if stream else msgspec.json.encode(text)[1:-1]
            case CallOpened(name):
                if stream:
                    return self._chunk(_call_delta(_MOST_CALLS, name))
                return msgspec.json.encode(ToolCallObject(_call_id(), FunctionCall(name, ""))) + b","
            case ArgumentsDelta(text):
                return self._chunk(_arguments_delta(_MOST_CALLS, text)) if stream else msgspec.json.encode(text)[1:-1]
            case Resumed(_, name):
                return b"" if stream or name is None else self.piece(CallOpened(name), stream=False)
            case Begun() | CallClosed() | End():
                return b""

    async def whole(self, parts: AsyncIterator[Part]) -> bytes:
        """A chat.completion. A call that goes on is its first one, with the rest of the arguments.

        Raises:
            ServiceError: raised by `parts`.
        """
        content: list[str] = []
        reasoning: list[str] = []
        calls: list[ToolCallObject] = []
        arguments: list[list[str]] = []  # of each call
        end: End | None = None
        async for part in parts:
            match part:
                case ContentDelta(text):
                    content.append(text)
                case ReasoningDelta(text):
                    reasoning.append(text)
                case CallOpened(name) | Resumed(_, str(name)):
                    calls.append(ToolCallObject(_call_id(), FunctionCall(name, "")))
                    arguments.append([])
                case ArgumentsDelta(text):
                    arguments[-1].append(text)
                case Begun() | CallClosed() | Resumed():
                    pass
                case End():
                    end = part
        assert end is not None, "an answer without an end raises"
        for call, texts in zip(calls, arguments, strict=True):
            call.function.arguments = "".join(texts)
        message = AnswerMessage(
            content="".join(content) if content or not calls else None,
            reasoning_content="".join(reasoning) if reasoning else msgspec.UNSET,
            tool_calls=calls or msgspec.UNSET,
        )
        choices = [Choice(message, _FINISH_REASONS[end.reason])]
        usage = _usage(end.usage)
        completion = ChatCompletion(self.id, self._created, self._model, choices, usage, self._fingerprint)
        completion.continuation = end.continuation or msgspec.UNSET
        return msgspec.json.encode(completion)

    async def events(self, parts: AsyncIterator[Part]) -> AsyncGenerator[bytes, None]:
        """chat.completion.chunks; the last event is [DONE] or an error.

        An answer that goes on counts its calls from the first request's on, and has no id for one that has begun there.
        """
        num_calls = 0
        try:
            yield self._chunk(Delta(role="assistant", content=""))
            async for part in parts:
                match part:
                    case ContentDelta(text):
                        yield self._chunk(Delta(content=text))
                    case ReasoningDelta(text):
                        yield self._chunk(Delta(reasoning_content=text))
                    case CallOpened(name):
                        yield self._chunk(_call_delta(num_calls, name))
                        num_calls += 1
                    case ArgumentsDelta(text):
                        yield self._chunk(_arguments_delta(num_calls - 1, text))
                    case Resumed():
                        num_calls = part.num_calls
                    case Begun() | CallClosed():
                        pass
                    case End(reason, usage, continuation):
                        last = self._chunk_object([ChunkChoice(Delta(), _FINISH_REASONS[reason])], None)
                        last.continuation = continuation or msgspec.UNSET
                        yield sse.event(last)
                        if self._with_usage:
                            yield sse.event(self._chunk_object([], _usage(usage)))
        except ServiceError as error:
            yield sse.event(errors.body(error))
        else:
            yield DONE

    def _chunk(self, delta: Delta) -> bytes:
        return sse.event(self._chunk_object([ChunkChoice(delta)], None))

    def _chunk_object(self, choices: list[ChunkChoice], usage: CompletionUsage | None) -> ChatCompletionChunk:
        # With include_usage, OpenAI sends `usage: null` in every chunk except the one with the usage.
        shown = usage if self._with_usage else msgspec.UNSET
        return ChatCompletionChunk(self.id, self._created, self._model, choices, self._fingerprint, shown)


def _usage(usage: Usage) -> CompletionUsage:
    return CompletionUsage(
        usage.num_prompt_tokens,
        usage.num_generated_tokens,
        usage.num_prompt_tokens + usage.num_generated_tokens,
        PromptTokensDetails(usage.num_cached_tokens),
        CompletionTokensDetails(usage.num_reasoning_tokens),
    )


def _call_delta(index: int, name: str) -> Delta:
    return Delta(tool_calls=[ToolCallDelta(index, FunctionDelta("", name), _call_id(), "function")])


def _arguments_delta(index: int, text: str) -> Delta:
    return Delta(tool_calls=[ToolCallDelta(index, FunctionDelta(text))])


def _call_id() -> str:
    return f"call_{fresh_id()[:24]}"
