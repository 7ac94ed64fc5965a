"""A request once more, with another body: for routes that find an API's request inside a platform's."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import Message

_OF_THE_OLD_BODY = (b"content-type", b"content-length", b"transfer-encoding")


def with_body(request: Request, body: bytes) -> Request:
    """The request with this body of JSON. The client's disconnection is still noticed.

    Args:
        request: its body has been read.
        body: of the new request.
    """
    unread = [body]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        return await request.receive()

    headers = [(name, value) for name, value in request.scope["headers"] if name not in _OF_THE_OLD_BODY]
    headers.append((b"content-type", b"application/json"))
    return Request(dict(request.scope, headers=headers), receive)
