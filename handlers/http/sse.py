"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html.

Each event is one `data:` line of JSON. The API writes the last event, and the event of an error after the status was
sent. Events that are ready at the same time are sent together: a write costs more than an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from types import TracebackType

import msgspec
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwonnx.handlers.http.disconnect import while_connected

# Proxies close idle connections, often after 30 or 60 seconds; a long prompt may take longer.
KEEP_ALIVE_SECONDS = 15.0
COMMENT = b": keep-alive\n\n"
# Events that wait while earlier ones are sent; then their source waits, too.
_MOST_BYTES = 16 << 10

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
        async with _ReadyEvents(self._events, self._keep_alive_seconds, self._keep_alive) as ready:
            while piece := await ready.next():
                # Clients leave as soon as they have the last event: the body's end must not come after it.
                is_last = ready.are_over
                await send({"type": "http.response.body", "body": piece, "more_body": not is_last})
                if is_last:
                    return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _ReadyEvents:
    """Events that wait to be sent: a task reads their source, so those that come while others are sent go together.

    As an asynchronous context manager it runs the task, and at its end the source is not read any more.

    Args:
        events: the source.
        keep_alive_seconds: without an event, until keep_alive comes instead; None: never.
        keep_alive: a comment, or an event that the API has for it.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], keep_alive_seconds: float | None, keep_alive: bytes
    ) -> None:
        self._events = events
        self._keep_alive = keep_alive
        self._seconds = keep_alive_seconds
        self._loop = asyncio.get_running_loop()
        self._ready: list[bytes] = []
        self._num_bytes = 0
        self._taker: asyncio.Future[None] | None = None  # waits for an event
        self._room: asyncio.Future[None] | None = None  # the reader waits for it
        self._taken_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None  # one a stream: a timer an event costs more than the event

    @property
    def are_over(self) -> bool:
        """No event follows those that were taken, and no error."""
        over = self._reader.done() and not self._ready
        return over and not self._reader.cancelled() and self._reader.exception() is None

    async def next(self) -> bytes:
        """All events that are ready, at least one; empty after the last one.

        Raises:
            the errors of the source.
        """
        if not self._ready and not self._reader.done():
            self._taker = self._loop.create_future()
            await self._taker
        piece = self._ready[0] if len(self._ready) == 1 else b"".join(self._ready)
        self._ready.clear()
        self._num_bytes = 0
        self._taken_at = self._loop.time()
        if self._room is not None:
            _settle(self._room)
            self._room = None
        if not piece:
            self._reader.result()
        return piece

    async def _read(self) -> None:
        async for event in self._events:
            if not event:
                continue
            self._put(event)
            if self._num_bytes >= _MOST_BYTES:
                self._room = self._loop.create_future()
                await self._room

    def _put(self, event: bytes) -> None:
        self._ready.append(event)
        self._num_bytes += len(event)
        self._wake()

    def _wake(self, *_: object) -> None:
        if self._taker is not None:
            _settle(self._taker)
            self._taker = None

    def _watch(self, seconds: float) -> None:
        """Put keep_alive if nothing was taken for so long, and look again when the next one may be due."""
        due_at = self._taken_at + seconds
        if self._loop.time() >= due_at:
            # While nothing waits for an event, the client does not even take what it was sent.
            if self._taker is not None:
                self._put(self._keep_alive)
            due_at = self._loop.time() + seconds
        self._timer = self._loop.call_at(due_at, self._watch, seconds)

    async def __aenter__(self) -> _ReadyEvents:
        self._reader = asyncio.ensure_future(self._read())
        self._reader.add_done_callback(self._wake)
        if self._seconds is not None:
            self._timer = self._loop.call_later(self._seconds, self._watch, self._seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._reader.cancel()
        # Wait for it, so that the source can be closed.
        await asyncio.gather(self._reader, return_exceptions=True)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
