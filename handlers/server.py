"""A uvicorn server that stops gracefully: it refuses new requests, and running ones get a bounded time to finish."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from qwonnx.handlers.app import create_app
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError

# uvicorn waits for open connections without a limit. Answers end when the engine is closed, but a client that does not
# read its answer must not keep the process alive.
_SEND_SECONDS = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(address: str, port: int) -> socket.socket:
    """A listening socket. A client that connects early waits and is not refused.

    Args:
        address: only this machine can reach 127.0.0.1.
        port: 0 takes a free one.

    Raises:
        SettingsError: the address is not this machine's, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]  # Python adds the address
        raise SettingsError(f"cannot listen on {address}, port {port} ({reason}): choose another") from error


def url_of(listener: socket.socket) -> str:
    """The URL for a client on this machine."""
    address, port = listener.getsockname()[:2]
    if address in ("0.0.0.0", "::"):
        address = "localhost"
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


class Server(uvicorn.Server):
    """One application. Run it with `run(sockets=[bind(...)])`.

    Args:
        host: of the engine.
        settings: of the application.
    """

    def __init__(self, host: ModelHost, settings: ServerSettings) -> None:
        config = uvicorn.Config(
            create_app(host, settings),
            lifespan="on",
            access_log=False,  # access_log.py writes one without content
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=int(settings.shutdown_seconds) + _SEND_SECONDS,
        )
        super().__init__(config)
        self._host = host
        self._shutdown_seconds = settings.shutdown_seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._host.begin_close()
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._shutdown_seconds, lambda: loop.run_in_executor(None, self._host.close))
        try:
            await super().shutdown(sockets)
        finally:
            deadline.cancel()

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
