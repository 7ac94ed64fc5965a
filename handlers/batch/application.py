"""Requests to an application in the same process: what it would answer over HTTP, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message

from qwonnx.handlers.batch.work import Reply

_ADDRESS = ("127.0.0.1", 0)


async def post(app: ASGIApp, path: str, body: bytes) -> Reply:
    """The application's answer to a JSON body. If this is cancelled, the application ends the request."""
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await _forever()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    status, headers, parts = 500, dict[bytes, bytes](), list[bytes]()

    async def send(message: Message) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], dict(message.get("headers", ()))
        else:
            parts.append(message.get("body", b""))

    await app(_scope(path, len(body)), receive, send)
    text = b"".join(parts)
    try:
        document = json.loads(text)
    except ValueError:
        document = text.decode(errors="replace")
    return Reply(status, headers.get(b"x-request-id", b"").decode("latin-1"), document)


def _scope(path: str, length: int) -> MutableMapping[str, Any]:
    headers = [(b"host", b"batch"), (b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": _ADDRESS,
        "server": _ADDRESS,
        "state": {},
    }


async def _forever() -> None:
    """The client stays until it has its answer."""
    await asyncio.get_running_loop().create_future()
