"""Requests to an application in the same process: what it would answer over HTTP, without a socket."""

from __future__ import annotations

import json

from starlette.types import ASGIApp

from qwonnx.handlers.batch.work import Reply
from qwonnx.handlers.chat.endpoint import has_last_turn
from qwonnx.handlers.http.access_log import REQUEST_ID_HEADER
from qwonnx.handlers.http.exchange import GivenRequest, WholeAnswer
from qwonnx.handlers.http.in_process import scope_of


async def post(app: ASGIApp, path: str, body: bytes) -> Reply:
    """The application's answer to a JSON body. If this is cancelled, the application ends the request."""
    answer = WholeAnswer()
    scope = scope_of("POST", path)
    has_last_turn(scope)
    await app(scope, GivenRequest(body).receive, answer.send)
    try:
        document = json.loads(answer.body)
    except ValueError:
        document = answer.body.decode(errors="replace")
    return Reply(answer.status or 500, dict(answer.headers).get(REQUEST_ID_HEADER, ""), document)
