"""A Hugging Face hub of one repository, on a port of this machine, with the part of its protocol for a download."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.export.checkpoint.local_server import LocalHandler, LocalServer, running

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/tiny"
GATED = "someone/gated"
SIGNATURE = "X-Amz-Signature=0123456789secret"


class HubServer(LocalServer):
    """Serves the files below `folder` as REPOSITORY at branch main.

    Shards are large files: they redirect to another host, with a signature in the URL. `downloads` lists the files that
    were fetched, `sent` counts their bytes, and `tokens` are the ones that came, by host. A test may

        put names into `lost`: they are listed and cannot be fetched
        put names into `breaks`: how often the connection breaks after half of a file
        set `busy`: how many of the next requests are answered with 429
        set `held`: after half of a shard, the rest waits for this event
        set `lists`: more names that are listed
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(_Handler)
        self.files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        self.downloads: list[str] = []
        self.sent: dict[str, int] = {}
        self.tokens: dict[str, set[str | None]] = {}
        self.lost: set[str] = set()
        self.breaks: dict[str, int] = {}
        self.busy = 0
        self.held: threading.Event | None = None
        self.lists: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server(folder: Path) -> Iterator[HubServer]:
    with running(HubServer(folder)) as server:
        yield server


class _Handler(LocalHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def _respond(self) -> None:
        hub, path = self.server, urlsplit(self.path).path
        host = self.headers["Host"].partition(":")[0]
        hub.tokens.setdefault(host, set()).add(self.headers.get("Authorization"))
        api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{COMMIT}/"
        name = path.removeprefix(resolve) if path.startswith(resolve) else None
        if hub.busy:
            hub.busy -= 1
            self._send(b"", {"Retry-After": "0"}, 429)
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self._send_json({"id": REPOSITORY, "sha": COMMIT, "siblings": []})
        elif path == f"{api}/tree/{COMMIT}":
            more = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in hub.lists]
            self._send_json([*({"type": "file", "path": name, **self._facts(name)} for name in hub.files), *more])
        elif name in hub.lost:
            self._send_error("EntryNotFound", 404)
        elif name in hub.files and name.endswith(".safetensors"):
            self._redirect(name)
        elif name in hub.files:
            self._send_file(name)
        elif path.startswith("/large/"):
            self._send_file(path.removeprefix("/large/"))
        elif path.startswith(f"{api}/revision/"):
            self._send_error("RevisionNotFound", 404)
        elif GATED in path:
            self._send_error("GatedRepo", 403)
        else:
            self._send_error("RepoNotFound", 401)

    def _facts(self, name: str) -> dict[str, object]:
        content = self.server.files[name].read_bytes()
        facts: dict[str, object] = {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if name.endswith(".safetensors"):
            facts["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return facts

    def _redirect(self, name: str) -> None:
        content = self.server.files[name].read_bytes()
        headers = {
            "Location": f"http://localhost:{self.server.server_port}/large/{name}?{SIGNATURE}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        }
        self._send(b"", headers, 302)

    def _send_json(self, document: object) -> None:
        self._send(json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str) -> None:
        if self.command == "GET":
            self.server.downloads.append(name)
        content = self.server.files[name].read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if found is None:
            self._send(content, headers, name=name)
            return
        first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(content[first : last + 1], headers, 206, name)

    def _send_error(self, code: str, status: int) -> None:
        self._send(b"", {"X-Error-Code": code, "X-Error-Message": f"no: {code}"}, status)

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200, name: str | None = None) -> None:
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "GET":
            return
        half = len(content) // 2
        if name is not None and self.server.breaks.get(name, 0):
            self.server.breaks[name] -= 1
            self._write(content[:half], name)
            self.close_connection = True
            return
        self._write(content[:half], name)
        if self.server.held is not None and name is not None and name.endswith(".safetensors"):
            self.wfile.flush()
            self.server.held.wait(20)
        self._write(content[half:], name)

    def _write(self, content: bytes, name: str | None) -> None:
        self.wfile.write(content)
        if name is not None:
            self.server.sent[name] = self.server.sent.get(name, 0) + len(content)
