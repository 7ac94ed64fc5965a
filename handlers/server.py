"""A uvicorn server that stops gracefully: it refuses new requests, and running ones get a bounded time to finish.

Its connections are limited in number and in time: handlers/http/connection.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from starlette.types import ASGIApp

from qwonnx.handlers.app import create_app
from qwonnx.handlers.http import uvicorn_parts
from qwonnx.handlers.http.connection import Connection, ConnectionLimits, LimitedConfig
from qwonnx.handlers.http.listener import BACKLOG
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.machine import give_back_memory

# uvicorn waits for open connections without a limit. Answers end when the engine is closed, but a client that does not
# read its answer must not keep the process alive.
_SEND_SECONDS = 5
logger = logging.getLogger(__name__)

_ACCEPTED_AT_ONCE = 16  # by one turn of the event loop, so that the limit of connections holds in a burst
_MAX_CONNECTIONS = 512
_RESERVED_FILES = 64  # of the process, for its own files, pipes, and connections that are about to be closed
_TRIM_SECONDS = 5
_COMPLAINT_SECONDS = 60.0
_FORCED_AFTER_SECONDS = 2.0  # a process that has not ended so long after its time is ended
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def max_connections(settings: ServerSettings) -> int:
    """The limit of open connections: the setting, or what the process may open.

    Raises:
        SettingsError: the process may not open as many files as the setting needs.
    """
    allowed = max(1, _max_files() - _RESERVED_FILES)
    if settings.max_connections is None:
        return min(_MAX_CONNECTIONS, allowed)
    if settings.max_connections > allowed:
        message = f"max_connections is {settings.max_connections} and the process may open {allowed}"
        raise SettingsError(f"{message}: give less, or raise the limit of open files (ulimit -n)")
    return settings.max_connections


def _tls(settings: ServerSettings) -> dict[str, Any]:
    """uvicorn's options for TLS.

    Raises:
        SettingsError: the certificate or its key cannot be used.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return {}
    import ssl

    try:
        # Without a password here, a key that needs one would ask for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:  # SSLError is one
        message = f"tls_certificate {certificate} and tls_key {key} cannot be used ({error})"
        raise SettingsError(f"{message}: give a certificate chain and its key without a password, in PEM") from error
    return {"ssl_certfile": certificate, "ssl_keyfile": key}


def _max_files() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return sys.maxsize
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


class Closable(Protocol):
    """What a server ends."""

    def begin_close(self) -> None:
        """Refuse new requests; running ones continue."""

    def close(self) -> None:
        """End running requests. Blocks until that is done."""


class Server(uvicorn_parts.Server):
    """One application. Run it with `run(sockets=[bind(...)])`.

    Args:
        host: what the application uses, such as a ModelHost; the server ends it.
        settings: of the application. SettingsError: its certificate cannot be used, or too many connections are asked
            for.
        owns_process: after a signal the process ends, even if a thread does not.
        make_app: makes the application of the host; by default that of a ModelHost.
    """

    def __init__(
        self,
        host: Closable,
        settings: ServerSettings,
        *,
        owns_process: bool = False,
        make_app: Callable[[Any, ServerSettings], ASGIApp] = create_app,
    ) -> None:
        limits = ConnectionLimits(
            max_connections(settings), settings.header_seconds, settings.body_seconds, settings.send_seconds
        )
        config = LimitedConfig(
            make_app(host, settings),
            limits,
            lifespan="on",
            access_log=False,  # access_log.py writes one without content
            log_config=None,
            server_header=False,
            backlog=_ACCEPTED_AT_ONCE,
            timeout_graceful_shutdown=int(settings.shutdown_seconds) + _SEND_SECONDS,
            **_tls(settings),
        )
        super().__init__(config)
        self._host = host
        self._shutdown_seconds = settings.shutdown_seconds
        self._owns_process = owns_process
        self._trimmed_after = 0  # requests
        self._complained_at = -_COMPLAINT_SECONDS

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._on_loop_error)
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio has set it to the number that it accepts at once

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._host.begin_close()
        loop = asyncio.get_running_loop()
        # The loop's own threads may be busy with requests.
        closing = threading.Thread(target=self._host.close, name="qwonnx-close", daemon=True)
        timers = [
            loop.call_later(self._shutdown_seconds, closing.start),
            loop.call_later(self._shutdown_seconds + _SEND_SECONDS / 2, self._abort_connections),
        ]
        try:
            await super().shutdown(sockets)
        finally:
            for timer in timers:
                timer.cancel()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second. Some seconds after requests came, give their memory back."""
        if counter % (10 * _TRIM_SECONDS) == 0 and self.server_state.total_requests != self._trimmed_after:
            self._trimmed_after = self.server_state.total_requests
            asyncio.get_running_loop().run_in_executor(None, give_back_memory)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._owns_process and not self.should_exit:
            threading.Thread(target=self._end_process, name="qwonnx-end", daemon=True).start()
        super().handle_exit(sig, frame)

    def _end_process(self) -> None:
        """End the process after its time. Daemon threads end with it, so this only acts if something else does not."""
        time.sleep(self._shutdown_seconds + _SEND_SECONDS + _FORCED_AFTER_SECONDS)
        print("qwonnx: the server did not stop in time and is ended", file=sys.stderr, flush=True)
        os._exit(1)

    def _abort_connections(self) -> None:
        """Close what is left: clients that do not send their request or do not read their answer."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection):
                connection.abort()

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log an error that has no caller. If the process may not open more files, this comes with each connection."""
        if not isinstance(context.get("exception"), OSError) or "accept" not in context["message"]:
            loop.default_exception_handler(context)
            return
        if loop.time() - self._complained_at >= _COMPLAINT_SECONDS:
            self._complained_at = loop.time()
            logger.error("connections cannot be accepted (%s): allow the process more files", context["exception"])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but handled signals are not raised again: a requested stop is not a failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
