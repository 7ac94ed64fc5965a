"""POST /v1/responses/input_tokens: how many tokens a request's input is."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers import errors
from qwonnx.handlers.chat.prompting import prompt_of
from qwonnx.handlers.chat.recent_items import RecentItems
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.api_key import owner_of
from qwonnx.handlers.http.body import BodyLimits, read_with, received
from qwonnx.handlers.http.disconnect import while_connected
from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.responses import request as requests
from qwonnx.handlers.responses.create import name_ignored
from qwonnx.handlers.responses.objects import InputTokens
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import InvalidRequestError


async def count_input_tokens(request: Request) -> Response:
    """The endpoint.

    Raises:
        ServiceError: the request is refused; a prompt that is surely too long is not tokenized.
        ClientDisconnect: the client disconnected first.
    """
    host: ModelHost = request.app.state.host
    limits: BodyLimits = request.app.state.bodies
    settings: ServerSettings = request.app.state.settings
    recent: RecentItems = request.app.state.recent_items
    find = partial(recent.find, owner_of(request.scope))
    count = partial(requests.counted, strict_tools=settings.strict_tools, find=find)
    async with received(request, limits) as data:
        counted = await read_with(count, data)
    engine = await engine_for(request)
    if counted.model is not None:
        host.check_model(counted.model)
    try:
        prompt = await while_connected(request.receive, prompt_of(engine, counted.neutral))
    except InvalidRequestError as error:
        raise requests.in_request_words(errors.refused(error), counted.tools) from error
    except ServiceError as error:
        raise requests.in_request_words(error, counted.tools) from error
    content = msgspec.json.encode(InputTokens(len(prompt.token_ids)))
    response = Response(content, media_type="application/json")
    name_ignored(response, counted.tools)
    return response
