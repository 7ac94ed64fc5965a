"""A router on a free loopback port, in a thread of the test's process, and replicas that misbehave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import openai

from qwonnx.handlers.app import APIS
from qwonnx.handlers.http.api import Apis
from qwonnx.handlers.http.body import BodyLimits
from qwonnx.handlers.http.body_budget import BodyBudget
from qwonnx.handlers.http.listener import bind, url_of
from qwonnx.handlers.routing.replicas import Address
from qwonnx.handlers.routing.router import Router
from qwonnx.handlers.server import Server
from qwonnx.handlers.settings import ServerSettings
from tests.handlers.serving import DEADLINE_SECONDS, until

MAX_BODY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Routed:
    """A running router."""

    url: str
    router: Router

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE_SECONDS, trust_env=False)


@contextmanager
def routed(urls: Sequence[str], *, ready: int | None = None) -> Iterator[Routed]:
    """Route to these URLs.

    Args:
        urls: of replicas.
        ready: of them, to wait for; None: all.
    """
    addresses = [Address(str(urlsplit(url).hostname), urlsplit(url).port or 80) for url in urls]

    async def find() -> Sequence[Address]:
        return addresses

    limits = BodyLimits(MAX_BODY_BYTES, 5.0, BodyBudget(4 * MAX_BODY_BYTES))
    router = Router(find, find_seconds=None, check_seconds=0.05, apis=Apis(APIS), limits=limits)
    server = Server(router, ServerSettings(shutdown_seconds=0.5), make_app=lambda host, settings: router.app)
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    wanted = len(urls) if ready is None else ready
    try:
        until(lambda: sum(each.is_ready for each in router.replicas.all) >= wanted)
        yield Routed(url_of(listener), router)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def scripted(pieces: Sequence[bytes], *, health: bytes = b"200 OK") -> Iterator[str]:
    """A replica that is healthy, and answers every other request with these bytes before it closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def answer(connection: socket.socket) -> None:
        with connection:
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536) or b"\r\n\r\n"
            if b"/health/ready" in request:
                connection.sendall(b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % health)
                return
            with suppress(OSError):  # who asked may have left
                for piece in pieces:
                    connection.sendall(piece)
                connection.shutdown(socket.SHUT_WR)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(connection,), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join()
        for thread in threads:
            thread.join(5)
