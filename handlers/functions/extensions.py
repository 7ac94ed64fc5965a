"""The parts of which platforms' routes are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qwonnx.handlers.app import APIS, error_response
from qwonnx.handlers.functions.foreign_events import RefuseEvents
from qwonnx.handlers.http.api import Api

Endpoint = Callable[[Request], Awaitable[Response]]


async def answer(request: Request) -> Response:
    """Answer a conversation: the first API's main endpoint.

    Raises:
        ServiceError: the request is refused, or the answer failed before anything was sent.
        ClientDisconnect: the client disconnected first.
    """
    main = APIS[0].main
    assert main is not None, "the first API has one"
    return await main(request)


def conversations(path: str, endpoint: Endpoint) -> Api:
    """A path for conversations in the first API's format, which needs the key as the API's own paths do."""
    return Api(
        prefix=path,
        routes=(Route(path, endpoint, methods=["POST"]),),
        error_response=APIS[0].error_response,
        hint=f"send conversations to {path}",
        key_headers=APIS[0].key_headers,
    )


def refuse_events(trigger: str) -> Sequence[Middleware]:
    """Middleware that refuses events of other services; `trigger` is what to use instead."""
    return (Middleware(RefuseEvents, trigger=trigger, error_response=error_response),)
