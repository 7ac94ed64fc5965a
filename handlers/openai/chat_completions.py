"""POST /v1/chat/completions: translate the request and the answer; chat/ does the rest.

body -> chat_request -> engine_request -> chat/endpoint -> parts -> chat.completion
                                                                or chunks as events
"""

from __future__ import annotations

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.chat.endpoint import answering_model, respond, respond_with_choices
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.body import BodyLimits, read_with, received
from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.openai import chat_request, engine_request
from qwonnx.handlers.openai.chat_protocol import ChatCompletionRequest
from qwonnx.handlers.openai.completion_writer import CompletionWriter
from qwonnx.handlers.openai.logprobs import LogprobsWriter


async def create_chat_completion(request: Request) -> Response:
    """The endpoint.

    Raises:
        ServiceError: the request is refused, or the answer failed before anything was sent.
        ClientDisconnect: the client disconnected first.
    """
    host: ModelHost = request.app.state.host
    limits: BodyLimits = request.app.state.bodies
    async with received(request, limits) as data:
        asked = await read_with(_understood, data)
    chat = asked.chat
    engine = await engine_for(request)
    logprobs = LogprobsWriter(engine.tokenizer) if chat.logprobs else None
    writer = CompletionWriter(chat, answering_model(request, chat.model), host.fingerprint, logprobs)
    stream = bool(chat.stream)
    try:
        if (chat.n or 1) == 1:
            return await respond(request, engine, asked.neutral, writer, stream=stream)
        choices = engine_request.choices(asked.neutral, chat.n or 1)
        return await respond_with_choices(request, engine, choices, writer, stream=stream, prompt_is_shared=True)
    except ServiceError as error:
        raise engine_request.in_openai_words(error) from error


class _Understood(Struct, frozen=True):
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
