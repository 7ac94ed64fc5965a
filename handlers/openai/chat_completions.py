"""POST /v1/chat/completions: read, render, submit, answer; whole or as a stream of chunks.

    body -> chat_request -> prompt -> engine -> outputs -> parser -> chat.completion
                                                                  or sse chunks

Whatever can be refused is refused before the first byte of an answer, with a status. A client that leaves ends its
generation within one step, streaming or not.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers import errors
from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.chat.outputs import OutputStream
from qwonnx.handlers.errors import ApiError
from qwonnx.handlers.http import body, deadline, sse
from qwonnx.handlers.http.disconnect import while_connected
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.openai import answer_guide, chat_request, engine_request
from qwonnx.handlers.openai.chat_objects import (
    AnswerMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CompletionTokensDetails,
    Delta,
    FinishReasonName,
    FunctionCall,
    PromptTokensDetails,
    ToolCallDelta,
    ToolCallObject,
    Usage,
)
from qwonnx.handlers.openai.chat_protocol import ChatCompletionRequest
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.errors import EngineClosedError, InvalidRequestError, QueueFullError
from qwonnx.runtime.text.chat_prompt import ChatPrompt
from qwonnx.runtime.text.output_parser import ContentDelta, Event, ReasoningDelta, ToolCall

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Ending:
    """The last thing an answer yields."""

    finish_reason: FinishReasonName
    usage: Usage


async def create_chat_completion(request: Request) -> Response:
    """The endpoint.

    Raises:
        ApiError: the request is refused, or the answer failed before anything was sent.
    """
    host: ModelHost = request.app.state.host
    settings: ServerSettings = request.app.state.settings
    capsules: CapsuleStore | None = request.app.state.capsules
    chat = chat_request.parse(await body.read(request, settings.max_body_bytes))
    engine = host.ready_engine()
    model = host.check_model(chat.model)
    answer = _Answer(chat, model, host.fingerprint)
    ends_at = deadline.of_request(request.scope, settings)
    try:
        if chat.stream:
            generation = await _submit(engine, chat, answer.id, ends_at, capsules)
            if deadline.of_invocation(request.scope) is not None:
                await generation.outputs.begun()  # the answer goes out in one piece, so its status can still tell
            saving = _saving(engine, generation.prompt, capsules)
            return sse.EventStream(answer.events(generation), generation.outputs, background=saving)
        return await while_connected(request.receive, _whole(engine, chat, answer, ends_at, capsules))
    except InvalidRequestError as error:
        raise ApiError.of(_in_openai_words(error, chat)) from error
    except (QueueFullError, EngineClosedError) as error:
        raise ApiError.of(error) from error


@dataclass(frozen=True, slots=True)
class _Generation:
    """A submitted request. Whoever gets it enters `outputs`, which ends it."""

    outputs: OutputStream
    prompt: ChatPrompt


async def _submit(
    engine: Engine, chat: ChatCompletionRequest, request_id: str, ends_at: float | None, capsules: CapsuleStore | None
) -> _Generation:
    params = engine_request.sampling_params(engine, chat)
    # Templates and tokenizers take tens of milliseconds for long conversations; the event loop must not wait.
    rendered = await asyncio.to_thread(engine_request.chat_prompt, engine, chat)
    guide = answer_guide.of_request(chat, thinking_open=rendered.thinking_open)
    if guide is not None:
        params = dataclasses.replace(params, guide=guide)
        # It may take seconds, and others may wait for the same one.
        await asyncio.shield(asyncio.wrap_future(engine.compile_guide(guide)))
    if capsules is not None:
        await asyncio.to_thread(capsules.restore, engine, rendered)
    outputs = OutputStream(
        engine,
        rendered.token_ids,
        params,
        request_id=request_id,
        snapshot_at=rendered.snapshot_at,
        deadline=ends_at,
    )
    return _Generation(outputs, rendered)


async def _whole(
    engine: Engine,
    chat: ChatCompletionRequest,
    answer: _Answer,
    ends_at: float | None,
    capsules: CapsuleStore | None,
) -> Response:
    generation = await _submit(engine, chat, answer.id, ends_at, capsules)
    async with generation.outputs:
        completion = await answer.whole(generation)
    saving = _saving(engine, generation.prompt, capsules)
    return Response(msgspec.json.encode(completion), media_type="application/json", background=saving)


def _saving(engine: Engine, rendered: ChatPrompt, capsules: CapsuleStore | None) -> BackgroundTask | None:
    """What is left to do once the answer is out; a function's invocation lasts until it is done."""
    return None if capsules is None else BackgroundTask(capsules.save, engine, rendered)


class _Answer:
    """One answer in the making: its identity, and its forms."""

    def __init__(self, chat: ChatCompletionRequest, model: str, fingerprint: str) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = model
        self._fingerprint = fingerprint
        self._with_usage = chat.stream_options is not None and chat.stream_options.include_usage
        self._one_call = chat.parallel_tool_calls is False

    async def whole(self, generation: _Generation) -> ChatCompletion:
        """The answer in one piece.

        Raises:
            ApiError: the generation failed or the server stopped.
        """
        content: list[str] = []
        reasoning: list[str] = []
        calls: list[ToolCallObject] = []
        ending: _Ending | None = None
        async with aclosing(self._parts(generation)) as parts:
            async for part in parts:
                match part:
                    case ContentDelta(text):
                        content.append(text)
                    case ReasoningDelta(text):
                        reasoning.append(text)
                    case ToolCall(name, arguments):
                        calls.append(ToolCallObject(_call_id(), FunctionCall(name, arguments)))
                    case _Ending():
                        ending = part
        assert ending is not None
        message = AnswerMessage(
            content="".join(content) if content or not calls else None,
            reasoning_content="".join(reasoning) if reasoning else msgspec.UNSET,
            tool_calls=calls or msgspec.UNSET,
        )
        choices = [Choice(message, ending.finish_reason)]
        return ChatCompletion(self.id, self._created, self._model, choices, ending.usage, self._fingerprint)

    async def events(self, generation: _Generation) -> AsyncGenerator[bytes, None]:
        """The answer as encoded events, the last of which is [DONE] or an error."""
        num_calls = 0
        try:
            async with aclosing(self._parts(generation)) as parts:
                yield self._chunk(Delta(role="assistant", content=""))
                async for part in parts:
                    match part:
                        case ContentDelta(text):
                            yield self._chunk(Delta(content=text))
                        case ReasoningDelta(text):
                            yield self._chunk(Delta(reasoning_content=text))
                        case ToolCall(name, arguments):
                            call = ToolCallDelta(num_calls, _call_id(), FunctionCall(name, arguments))
                            num_calls += 1
                            yield self._chunk(Delta(tool_calls=[call]))
                        case _Ending(finish_reason, usage):
                            yield self._chunk(Delta(), finish_reason)
                            if self._with_usage:
                                yield sse.event(self._chunk_object([], usage))
        except ApiError as error:
            yield sse.event(error.body)
        else:
            yield sse.DONE

    def _chunk(self, delta: Delta, finish_reason: FinishReasonName | None = None) -> bytes:
        return sse.event(self._chunk_object([ChunkChoice(delta, finish_reason)], None))

    def _chunk_object(self, choices: list[ChunkChoice], usage: Usage | None) -> ChatCompletionChunk:
        # With include_usage, OpenAI sends `usage: null` in every chunk but the one that has it.
        shown = usage if self._with_usage else msgspec.UNSET
        return ChatCompletionChunk(self.id, self._created, self._model, choices, self._fingerprint, shown)

    async def _parts(self, generation: _Generation) -> AsyncGenerator[Event | _Ending, None]:
        """What the model says, parsed, and at last how it ended."""
        parser = generation.prompt.parser()
        called = False
        num_reasoning = 0
        async for output in generation.outputs:
            _check_alive(output)
            ended = output.finish_reason is not None
            was_reasoning = parser.is_reasoning
            events = (*parser.push(output.text), *(parser.finish() if ended else ()))
            if was_reasoning or parser.is_reasoning:  # the tags count as well
                num_reasoning += len(output.token_ids)
            for event in events:
                called = called or isinstance(event, ToolCall)
                yield event
                if called and self._one_call:
                    # The client asked for one call at a time: what would follow it is not wanted.
                    generation.outputs.abort()
                    yield _Ending("tool_calls", _usage(output, num_reasoning))
                    return
            if ended:
                length = output.finish_reason is FinishReason.LENGTH
                reason: FinishReasonName = "length" if length else "tool_calls" if called else "stop"
                yield _Ending(reason, _usage(output, num_reasoning))


def _check_alive(output: RequestOutput) -> None:
    if output.finish_reason is FinishReason.ABORT:
        raise errors.closing()  # nobody else aborts a request that is still being answered
    if output.finish_reason is FinishReason.ERROR:
        logger.error("request %s failed: %s", output.request_id, output.error)
        raise errors.internal()


def _usage(output: RequestOutput, num_reasoning: int) -> Usage:
    prompt_tokens, completion_tokens = output.num_prompt_tokens, output.num_generated_tokens
    return Usage(
        prompt_tokens,
        completion_tokens,
        prompt_tokens + completion_tokens,
        PromptTokensDetails(output.num_cached_tokens),
        CompletionTokensDetails(num_reasoning),
    )


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _in_openai_words(error: InvalidRequestError, chat: ChatCompletionRequest) -> InvalidRequestError:
    """The engine speaks of its own parameters; the client knows those it sent."""
    param = error.param
    if param == "prompt":
        param = "messages"
    elif param == "max_tokens" and chat.max_tokens is None:
        param = "max_completion_tokens"
    return InvalidRequestError(str(error), param, error.code)
