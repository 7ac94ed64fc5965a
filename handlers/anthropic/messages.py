"""POST /v1/messages and /v1/messages/count_tokens: translate the request and the answer; chat/ does the rest.

body -> message_request -> chat/endpoint -> parts -> message, or events
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers import errors as service_errors
from qwonnx.handlers.anthropic import message_request
from qwonnx.handlers.anthropic.message_objects import TokenCount
from qwonnx.handlers.anthropic.message_writer import MessageWriter
from qwonnx.handlers.anthropic.protocol import CountTokensRequest, MessageRequest
from qwonnx.handlers.chat.endpoint import answering_model, respond
from qwonnx.handlers.chat.prompting import prompt_of
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.body import BodyLimits, read_with, received
from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.model_host import ModelHost
from qwonnx.runtime.errors import InvalidRequestError

_Asked = TypeVar("_Asked", bound=CountTokensRequest)


async def create_message(request: Request) -> Response:
    """The endpoint.

    Raises:
        ServiceError: the request is refused, or the answer failed before anything was sent.
        ClientDisconnect: the client disconnected first.
    """
    asked = await _received(request, MessageRequest)
    neutral = message_request.neutral(asked)
    engine = await engine_for(request)
    writer = MessageWriter(answering_model(request, asked.model))
    try:
        return await respond(request, engine, neutral, writer, stream=bool(asked.stream))
    except ServiceError as error:
        raise message_request.in_anthropics_words(error) from error


async def count_tokens(request: Request) -> Response:
    """The tokens of a prompt, without an answer.

    Raises:
        ServiceError: the request is refused.
        ClientDisconnect: the client disconnected first.
    """
    host: ModelHost = request.app.state.host
    asked = await _received(request, CountTokensRequest)
    engine = await engine_for(request)
    host.check_model(asked.model)
    try:
        prompt = await prompt_of(engine, message_request.neutral(asked))
    except InvalidRequestError as error:
        raise message_request.in_anthropics_words(service_errors.refused(error)) from error
    return Response(msgspec.json.encode(TokenCount(len(prompt.token_ids))), media_type="application/json")


async def _received(request: Request, kind: type[_Asked]) -> _Asked:
    limits: BodyLimits = request.app.state.bodies
    async with received(request, limits) as data:
        return await read_with(lambda body: message_request.parse(body, kind), data)
