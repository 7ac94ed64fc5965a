"""POST /v1/responses: translate the request and the answer; chat/ does the rest.

body -> request -> chat/endpoint -> parts -> output -> a response, or events of one
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.chat.endpoint import answering_model, respond
from qwonnx.handlers.chat.recent_items import RecentItems
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.api_key import owner_of
from qwonnx.handlers.http.body import BodyLimits, read_with, received
from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.openai.logprobs import LogprobsWriter
from qwonnx.handlers.responses import request as requests
from qwonnx.handlers.responses.tools import OfferedTools
from qwonnx.handlers.responses.writer import ResponseWriter
from qwonnx.handlers.settings import ServerSettings

IGNORED_TOOLS = "x-qwonnx-ignored-tools"


async def create_response(request: Request) -> Response:
    """The endpoint.

    Raises:
        ServiceError: the request is refused, or the answer failed before anything was sent.
        ClientDisconnect: the client disconnected first.
    """
    limits: BodyLimits = request.app.state.bodies
    settings: ServerSettings = request.app.state.settings
    recent: RecentItems = request.app.state.recent_items
    owner = owner_of(request.scope)
    find = partial(recent.find, owner)
    understand = partial(requests.understood, strict_tools=settings.strict_tools, find=find)
    async with received(request, limits) as data:
        understood = await read_with(understand, data)
    engine = await engine_for(request)
    body = understood.body
    keep = None if body.store is False else partial(recent.keep, owner)
    logprobs = LogprobsWriter(engine.tokenizer) if requests.wants_logprobs(body) else None
    writer = ResponseWriter(understood, answering_model(request, body.model), logprobs, keep)
    try:
        response = await respond(request, engine, understood.neutral, writer, stream=bool(body.stream))
    except ServiceError as error:
        raise requests.in_request_words(error, understood.tools) from error
    name_ignored(response, understood.tools)
    return response


def name_ignored(response: Response, tools: OfferedTools) -> None:
    """Name the tools that were ignored in a header of the response."""
    if tools.ignored:
        response.headers[IGNORED_TOOLS] = ", ".join(tools.ignored)
