"""A Hugging Face hub of one repository, on a port of this machine, with the part of its protocol for a download."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/tiny"
GATED = "someone/gated"


class HubServer(ThreadingHTTPServer):
    """Serves the files below `folder` as REPOSITORY at branch main.

    `downloads` lists the files that were fetched. A test may put names into `lost`: they are listed and cannot be
    fetched.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        self.downloads: list[str] = []
        self.lost: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server(folder: Path) -> Iterator[HubServer]:
    with HubServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing into the test's output."""

    def _respond(self) -> None:
        path = urlsplit(self.path).path
        api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self._send_json({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
        elif path == f"{api}/tree/{COMMIT}":
            self._send_json([{"type": "file", "path": name, **self._facts(name)} for name in self.server.files])
        elif path.startswith(resolve) and path.removeprefix(resolve) in self.server.lost:
            self._send_error("EntryNotFound", 404)
        elif path.startswith(resolve) and path.removeprefix(resolve) in self.server.files:
            self._send_file(path.removeprefix(resolve))
        elif path.startswith(f"{api}/revision/"):
            self._send_error("RevisionNotFound", 404)
        elif GATED in path:
            self._send_error("GatedRepo", 403)
        else:
            self._send_error("RepoNotFound", 401)

    def _facts(self, name: str) -> dict[str, str | int]:
        content = self.server.files[name].read_bytes()
        return {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _send_json(self, document: object) -> None:
        self._send(json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str) -> None:
        if self.command == "GET":
            self.server.downloads.append(name)
        etag = {"ETag": f'"{self._facts(name)["oid"]}"', "X-Repo-Commit": COMMIT}
        self._send(self.server.files[name].read_bytes(), etag)

    def _send_error(self, code: str, status: int) -> None:
        self._send(b"", {"X-Error-Code": code, "X-Error-Message": f"no: {code}"}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
