"""A web server of one folder, on a port of this machine, that serves ranges, counts bytes, and fails on demand."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.export.checkpoint.local_server import LocalHandler, LocalServer, running


class RangeServer(LocalServer):
    """Serves a folder; `requests` counts requests, and `sent` the bytes of files.

    A test may set

        fails_every     every so many requests fail: in turn with 503, 500, and a connection that breaks half-way
        seconds         that an answer takes
        user            user:password that a request must bring, in base64
        redirects_to    a URL to which every request is redirected
        ignores_ranges  whole files are sent
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(_Handler)
        self.folder = folder
        self.requests = 0
        self.sent = 0
        self.failed = 0
        self.fails_every = 0
        self.seconds = 0.0
        self.user: str | None = None
        self.redirects_to: str | None = None
        self.ignores_ranges = False
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/tiny"


@contextmanager
def range_server(folder: Path) -> Iterator[RangeServer]:
    with running(RangeServer(folder)) as server:
        yield server


class _Handler(LocalHandler):
    server: RangeServer

    def _respond(self) -> None:
        server = self.server
        with server.lock:
            server.requests += 1
            fails = server.fails_every and server.requests % server.fails_every == 0
            server.failed += bool(fails)
            kind = server.failed % 3
        time.sleep(server.seconds)
        path = server.folder / unquote(urlsplit(self.path).path).removeprefix("/models/tiny/")
        if server.redirects_to is not None:
            self._send(b"", {"Location": f"{server.redirects_to}/{path.name}"}, 302)
        elif fails and kind < 2:
            self._send(b"", {}, (503, 500)[kind])
        elif server.user is not None and self.headers.get("Authorization") != f"Basic {server.user}":
            self._send(b"", {}, 401)
        elif not path.is_file():
            self._send(b"", {}, 404)
        else:
            self._send_file(path, breaks=bool(fails))

    def _send_file(self, path: Path, *, breaks: bool) -> None:
        status = path.stat()
        etag = f'"{status.st_size}-{status.st_mtime_ns}"'
        headers = {"ETag": etag}
        if self.headers.get("If-Match", etag) != etag:
            self._send(b"", {}, 412)
            return
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if found is None or self.server.ignores_ranges:
            self._send(path.read_bytes(), headers, 200, breaks=breaks)
            return
        first, last = int(found[1]), int(found[2])
        headers["Content-Range"] = f"bytes {first}-{last}/{status.st_size}"
        with path.open("rb") as file:
            file.seek(first)
            self._send(file.read(last + 1 - first), headers, 206, breaks=breaks)

    def _send(self, content: bytes, headers: dict[str, str], status: int, *, breaks: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            sent = content[: len(content) // 2] if breaks else content
            self.wfile.write(sent)
            with self.server.lock:
                self.server.sent += len(sent)
