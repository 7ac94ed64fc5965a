"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html.

Each event is one `data:` line of JSON. The API writes the last event, and the event of an error after the status was
sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing

import msgspec
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwonnx.handlers.http.disconnect import while_connected

# Proxies close idle connections, often after 30 or 60 seconds; a long prompt may take longer.
KEEP_ALIVE_SECONDS = 15.0
COMMENT = b": keep-alive\n\n"

_HEADERS = {
    "cache-control": "no-cache, no-transform",  # no-transform: a proxy that compresses would buffer
    "x-accel-buffering": "no",  # nginx's switch
}


def event(value: object) -> bytes:
    """A value as one event. msgspec's JSON has no line breaks, so one `data:` line holds it."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def named_event(name: str, value: object) -> bytes:
    """A value as one event with a name, which must be one word."""
    return b"event: " + name.encode() + b"\n" + event(value)


class EventStream(Response):
    """A response that sends events as they come, and closes their source when the client disconnects.

    Args:
        events: encoded events.
        source: entered before the first event and left after the last one, even without events.
        keep_alive_seconds: until keep_alive is sent; None: the events have their own.
        keep_alive: a comment, or an event that the API has for it.
        background: runs after everything was sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        source: AbstractAsyncContextManager[object],
        *,
        keep_alive_seconds: float | None = KEEP_ALIVE_SECONDS,
        keep_alive: bytes = COMMENT,
        background: BackgroundTask | None = None,
    ) -> None:
        self.status_code = 200
        self.background = background
        self._events = events
        self._source = source
        self._keep_alive_seconds = keep_alive_seconds
        self._keep_alive = keep_alive
        self.init_headers(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Raises ClientDisconnect, which the access log records.
        async with self._source, aclosing(self._events):
            await while_connected(receive, self._send(send))
        if self.background is not None:
            await self.background()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(_kept_alive(self._events, self._keep_alive_seconds, self._keep_alive)) as pieces:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _kept_alive(
    events: AsyncGenerator[bytes, None], seconds: float | None, keep_alive: bytes
) -> AsyncGenerator[bytes, None]:
    """The events, and keep_alive after each period of so many seconds without an event."""
    upcoming: asyncio.Future[bytes] | None = None
    try:
        while True:
            if upcoming is None:
                upcoming = asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait((upcoming,), timeout=seconds)
            if not done:
                yield keep_alive
                continue
            try:
                piece = upcoming.result()
            except StopAsyncIteration:
                return
            upcoming = None
            yield piece
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)


async def _next(events: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(events)
