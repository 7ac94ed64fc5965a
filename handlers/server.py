"""uvicorn, ended gently: new requests are refused, running ones get a bounded time, then they end with an error."""

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

# uvicorn waits for connections without a limit of its own; answers end when the engine is closed, and a client that
# does not read its answer must not keep the process.
_SEND_SECONDS = 5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """One application on one address.

    Args:
        host: the engine's.
        settings: the application's.
        address: where to listen; only this machine can reach 127.0.0.1.
        port: 0 takes a free one.
    """

    def __init__(self, host: ModelHost, settings: ServerSettings, *, address: str = "127.0.0.1", port: int = 8000):
        config = uvicorn.Config(
            create_app(host, settings),
            host=address,
            port=port,
            lifespan="on",
            access_log=False,  # ours has no content
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
        """As uvicorn's, but what was obeyed is not raised again: a server that ends as asked has not failed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
