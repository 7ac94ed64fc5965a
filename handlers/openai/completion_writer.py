"""Writes a chat completion in OpenAI's objects, as a whole or in chunks: one answer, or several with their numbers."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import msgspec

from qwonnx.handlers.chat.choices import Numbered
from qwonnx.handlers.chat.parts import Begun, ContentLogprobs, End, EndReason, Part, Resumed, Usage
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http import sse
from qwonnx.handlers.openai import errors
from qwonnx.handlers.openai.answer_timer import AnswerTimer
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
    Logprobs,
    PromptTokensDetails,
    ToolCallDelta,
    ToolCallObject,
)
from qwonnx.handlers.openai.chat_protocol import ChatCompletionRequest
from qwonnx.handlers.openai.logprobs import LogprobsWriter
from qwonnx.runtime.sampling.entropy import fresh_id
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened, ContentDelta, ReasoningDelta

FINISH_REASONS: dict[EndReason, FinishReasonName] = {
    EndReason.STOP: "stop",
    EndReason.LENGTH: "length",
    EndReason.CALLS: "tool_calls",
}
_MOST_CALLS = 999_999  # an index of this length


class CompletionWriter:
    """Writes one completion.

    Args:
        chat: the request.
        model: the model's name.
        fingerprint: of the artifact.
        logprobs: writes log probabilities; None if the request asks for none.
    """

    keep_alive = sse.COMMENT

    def __init__(
        self, chat: ChatCompletionRequest, model: str, fingerprint: str, logprobs: LogprobsWriter | None = None
    ) -> None:
        self.id = f"chatcmpl-{fresh_id()}"
        self._created = int(time.time())
        self._model = model
        self._fingerprint = fingerprint
        self._num_choices = chat.n or 1
        self._with_usage = chat.stream_options is not None and chat.stream_options.include_usage
        self._logprobs = logprobs
        self._timer = AnswerTimer() if chat.timings else None

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
            case ContentLogprobs(logprobs):
                return b"" if self._logprobs is None else msgspec.json.encode(self._logprobs.token(logprobs)) + b","
            case Begun() | CallClosed() | End():
                return b""

    async def whole(self, parts: AsyncIterator[Part | Numbered]) -> bytes:
        """A chat.completion. A call that goes on is its first one, with the rest of the arguments.

        Raises:
            ServiceError: raised by `parts`.
        """
        choices = [_WholeChoice(index, self._logprobs) for index in range(self._num_choices)]
        async for each in parts:
            index, part = (each.index, each.part) if isinstance(each, Numbered) else (0, each)
            choices[index].add(part)
            if self._timer is not None:
                self._timer.note(part)
        ends = [choice.end for choice in choices]
        completion = ChatCompletion(
            self.id,
            self._created,
            self._model,
            [choice.made() for choice in choices],
            _usage([end.usage for end in ends]),
            self._fingerprint,
        )
        completion.continuation = ends[0].continuation or msgspec.UNSET
        completion.timings = msgspec.UNSET if self._timer is None else self._timer.timings()
        return msgspec.json.encode(completion)

    async def events(self, parts: AsyncIterator[Part | Numbered]) -> AsyncGenerator[bytes, None]:
        """chat.completion.chunks; the last event is [DONE] or an error.

        An answer that goes on counts its calls from the first request's on, and has no id for one that has begun there.
        """
        choices = [_StreamedChoice(index, self._logprobs) for index in range(self._num_choices)]
        ends: list[End] = []
        try:
            for choice in choices:
                yield self._event(ChunkChoice(Delta(role="assistant", content=""), index=choice.index))
            async for each in parts:
                index, part = (each.index, each.part) if isinstance(each, Numbered) else (0, each)
                if self._timer is not None:
                    self._timer.note(part)
                for chunk in choices[index].add(part):
                    yield self._event(chunk)
                if isinstance(part, End):
                    ends.append(part)
                    last = self._object([choices[index].last(part)], None)
                    last.continuation = part.continuation or msgspec.UNSET
                    if self._timer is not None and len(ends) == len(choices):
                        last.timings = self._timer.timings()
                    yield sse.event(last)
            if self._with_usage:
                yield sse.event(self._object([], _usage([end.usage for end in ends])))
        except ServiceError as error:
            yield sse.event(errors.body(error))
        else:
            yield DONE

    def _chunk(self, delta: Delta) -> bytes:
        return self._event(ChunkChoice(delta))

    def _event(self, choice: ChunkChoice) -> bytes:
        return sse.event(self._object([choice], None))

    def _object(self, choices: list[ChunkChoice], usage: CompletionUsage | None) -> ChatCompletionChunk:
        # With include_usage, OpenAI sends `usage: null` in every chunk except the one with the usage.
        shown = usage if self._with_usage else msgspec.UNSET
        return ChatCompletionChunk(self.id, self._created, self._model, choices, self._fingerprint, shown)


class _WholeChoice:
    """One choice, put together from its parts."""

    def __init__(self, index: int, logprobs: LogprobsWriter | None) -> None:
        self._index = index
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCallObject] = []
        self._arguments: list[list[str]] = []  # of each call
        self._writer = logprobs
        self._logprobs = None if logprobs is None else Logprobs([])
        self._end: End | None = None

    @property
    def end(self) -> End:
        assert self._end is not None, "an answer without an end raises"
        return self._end

    def add(self, part: Part) -> None:
        match part:
            case ContentDelta(text):
                self._content.append(text)
            case ReasoningDelta(text):
                self._reasoning.append(text)
            case CallOpened(name) | Resumed(_, str(name)):
                self._calls.append(ToolCallObject(_call_id(), FunctionCall(name, "")))
                self._arguments.append([])
            case ArgumentsDelta(text):
                self._arguments[-1].append(text)
            case ContentLogprobs(logprobs):
                if self._writer is not None and self._logprobs is not None:
                    self._logprobs.content.append(self._writer.token(logprobs))
            case End():
                self._end = part
            case Begun() | CallClosed() | Resumed():
                pass

    def made(self) -> Choice:
        for call, texts in zip(self._calls, self._arguments, strict=True):
            call.function.arguments = "".join(texts)
        message = AnswerMessage(
            content="".join(self._content) if self._content or not self._calls else None,
            reasoning_content="".join(self._reasoning) if self._reasoning else msgspec.UNSET,
            tool_calls=self._calls or msgspec.UNSET,
        )
        return Choice(message, FINISH_REASONS[self.end.reason], self._index, self._logprobs)


class _StreamedChoice:
    """The chunks of one choice."""

    def __init__(self, index: int, logprobs: LogprobsWriter | None) -> None:
        self.index = index
        self._num_calls = 0
        self._writer = logprobs
        self._logprobs = Logprobs([])  # of tokens whose text comes next

    def add(self, part: Part) -> Iterator[ChunkChoice]:
        """The chunks of a part but an End."""
        match part:
            case ContentDelta(text):
                yield self._chunk(Delta(content=text))
            case ReasoningDelta(text):
                yield self._chunk(Delta(reasoning_content=text))
            case CallOpened(name):
                yield self._chunk(_call_delta(self._num_calls, name))
                self._num_calls += 1
            case ArgumentsDelta(text):
                yield self._chunk(_arguments_delta(self._num_calls - 1, text))
            case Resumed():
                self._num_calls = part.num_calls
            case ContentLogprobs(logprobs):
                if self._writer is not None:
                    self._logprobs.content.append(self._writer.token(logprobs))
            case Begun() | CallClosed() | End():
                pass

    def last(self, end: End) -> ChunkChoice:
        chunk = self._chunk(Delta())
        chunk.finish_reason = FINISH_REASONS[end.reason]
        return chunk

    def _chunk(self, delta: Delta) -> ChunkChoice:
        logprobs = self._logprobs if self._logprobs.content else None
        self._logprobs = Logprobs([])
        return ChunkChoice(delta, index=self.index, logprobs=logprobs)


def _usage(usages: list[Usage]) -> CompletionUsage:
    """Of one prompt and all its answers."""
    prompt, cached = usages[0].num_prompt_tokens, usages[0].num_cached_tokens
    generated = sum(usage.num_generated_tokens for usage in usages)
    reasoning = sum(usage.num_reasoning_tokens for usage in usages)
    details = PromptTokensDetails(cached), CompletionTokensDetails(reasoning)
    return CompletionUsage(prompt, generated, prompt + generated, *details)


def _call_delta(index: int, name: str) -> Delta:
    return Delta(tool_calls=[ToolCallDelta(index, FunctionDelta("", name), _call_id(), "function")])


def _arguments_delta(index: int, text: str) -> Delta:
    return Delta(tool_calls=[ToolCallDelta(index, FunctionDelta(text))])


def _call_id() -> str:
    return f"call_{fresh_id()[:24]}"
