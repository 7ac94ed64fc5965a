"""One connection of a client: uvicorn's, with time limits and a limit on their number.

A connection first waits for a request's head, then for its body, then for the answer. Each wait for the client has a
time limit; so has an answer that the client does not read. If too many connections are open, one that waits longest
for its client is closed: a request that is being answered never is.

uvicorn itself limits only the time between two requests, and counts a connection when its request has come.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from msgspec import Struct

from qwonnx.handlers.http.request_head import RequestReader
from qwonnx.handlers.http.uvicorn_parts import Config, H11Protocol

# One turn of the event loop reads at most this much of one connection: asyncio's 256 KiB in tiny chunks take 0.7 s.
_READ_BYTES = 16 << 10
# What a client has not read, in our buffer and in the system's, which grows to megabytes by itself: hundreds of tokens.
_UNREAD_BYTES = 32 << 10
_MAX_HEAD_BYTES = 16 << 10
# The application's own limit for a body comes first, because it can still answer.
_BODY_MARGIN_SECONDS = 1.0


class ConnectionLimits(Struct, frozen=True):
    """Limits of the connections of a server.

    max_connections: that are open at a time.
    header_seconds: for a request's head, from the connection's beginning or from the end of the last answer.
    body_seconds: for a request's body, from the end of its head.
    send_seconds: for a client to take what waits to be sent, 24 KiB or the rest of an answer.
    """

    max_connections: int
    header_seconds: float
    body_seconds: float
    send_seconds: float


class OpenConnections:
    """The connections of one server that are open, and those that wait for their client, longest first."""

    def __init__(self) -> None:
        self._open: set[Connection] = set()
        self._for_head: dict[Connection, None] = {}  # dicts keep the order
        self._for_body: dict[Connection, None] = {}

    def add(self, connection: Connection) -> None:
        self._open.add(connection)

    def remove(self, connection: Connection) -> None:
        self._open.discard(connection)
        self.waits_no_more(connection)

    def waits_for_head(self, connection: Connection) -> None:
        self._for_head[connection] = None

    def waits_for_body(self, connection: Connection) -> None:
        self._for_body[connection] = None

    def waits_no_more(self, connection: Connection) -> None:
        self._for_head.pop(connection, None)
        self._for_body.pop(connection, None)

    def one_too_many(self, max_connections: int) -> Connection | None:
        """The connection to close if more than so many are open: one without a request, then one with half of a body.

        The newest one without a request is among them, so one is always found.
        """
        if len(self._open) <= max_connections:
            return None
        return next(iter(self._for_head), None) or next(iter(self._for_body), None)


class LimitedConfig(Config):
    """uvicorn's configuration, with limits.

    Args:
        limits: of the connections.
        options: uvicorn's.
    """

    def __init__(self, app: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(app, http=Connection, ws="none", h11_max_incomplete_event_size=_MAX_HEAD_BYTES, **options)
        self.limits = limits
        self.open_connections = OpenConnections()


class Connection(H11Protocol):
    """The protocol of one connection. Needs a LimitedConfig."""

    def __init__(self, config: LimitedConfig, server_state: Any, app_state: dict[str, Any], _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = RequestReader(h11.SERVER, _MAX_HEAD_BYTES)
        self._limits = config.limits
        self._others = config.open_connections
        self._state: Any = None  # of the client, whose time runs
        self._waiting: asyncio.TimerHandle | None = None  # for a head or a body
        self._sending: asyncio.TimerHandle | None = None  # until the client reads

    @property
    def is_open(self) -> bool:
        return not self.transport.is_closing()

    def abort(self) -> None:
        """Close it now, without sending what waits to be sent."""
        self._others.remove(self)
        self.transport.abort()

    def _unsupported_upgrade_warning(self) -> None:
        """Clients try a WebSocket first and read the refusal; the log need not have a line for each."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_BYTES
        transport.set_write_buffer_limits(high=_UNREAD_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_BYTES)
        self._others.add(self)
        self._watch()
        if (last := self._others.one_too_many(self._limits.max_connections)) is not None:
            last.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.remove(self)
        for timer in (self._waiting, self._sending):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._state = None  # the next request has the whole time
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch()

    def shutdown(self) -> None:
        super().shutdown()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
            self._watch()
        else:
            self.abort()  # an answer has begun, or was sent

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._sending is not None and self.is_open:
            self._sending.cancel()
            self._sending = None

    def _watch(self) -> None:
        """Start or stop the clock for what the client has to send. What is closed must be read."""
        if not self.is_open:
            self._expect_reading()
        state = self.conn.their_state
        if state is self._state:
            return
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._state = state
        self._others.waits_no_more(self)
        if not self.is_open:
            return
        if state is h11.IDLE:
            self._others.waits_for_head(self)
            self._waiting = self.loop.call_later(self._limits.header_seconds, self.abort)
        elif state is h11.SEND_BODY:
            self._others.waits_for_body(self)
            seconds = self._limits.body_seconds + _BODY_MARGIN_SECONDS
            self._waiting = self.loop.call_later(seconds, self.abort)

    def _expect_reading(self) -> None:
        if self._sending is None:
            self._sending = self.loop.call_later(self._limits.send_seconds, self.abort)
