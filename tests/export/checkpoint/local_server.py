"""HTTP servers of tests: on a free port of this machine, in threads, silent."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar


class LocalServer(ThreadingHTTPServer):
    """A server on a free port."""

    daemon_threads = True

    def __init__(self, handler: type[LocalHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client may leave at any time."""


class LocalHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD alike."""

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing into the test's output."""

    @abstractmethod
    def _respond(self) -> None: ...


_Server = TypeVar("_Server", bound=LocalServer)


@contextmanager
def running(server: _Server) -> Iterator[_Server]:
    """Serve in a thread; the server is closed at the end."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
