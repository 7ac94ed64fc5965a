"""A request with another body: read once, with its client still watched."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from qwonnx.handlers.http.replayed import with_body

pytestmark = pytest.mark.fast


def outer(*messages: Message) -> Request:
    left = list(messages)

    async def receive() -> Message:
        return left.pop(0)

    headers = [(b"content-type", b"text/plain"), (b"content-length", b"99"), (b"x-request-id", b"7")]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def test_the_new_body_is_read_as_json_and_other_headers_stay() -> None:
    inner = with_body(outer(), b'{"a": 1}')
    assert asyncio.run(inner.json()) == {"a": 1}
    assert dict(inner.headers) == {"x-request-id": "7", "content-type": "application/json"}


def test_a_client_that_leaves_is_noticed_after_the_body() -> None:
    inner = with_body(outer({"type": "http.disconnect"}), b"{}")

    async def read_on() -> Message:
        assert await inner.body() == b"{}"
        return await inner.receive()

    assert asyncio.run(read_on()) == {"type": "http.disconnect"}


def test_the_outer_requests_own_reading_is_not_repeated() -> None:
    request = outer({"type": "http.request", "body": b"old", "more_body": False}, {"type": "http.disconnect"})

    async def both() -> bytes:
        assert await request.body() == b"old"
        return await with_body(request, b"new").body()

    assert asyncio.run(both()) == b"new"
    with pytest.raises(ClientDisconnect):
        asyncio.run(outer({"type": "http.disconnect"}).body())
