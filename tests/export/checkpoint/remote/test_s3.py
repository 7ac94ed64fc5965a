"""A checkpoint in S3, by moto's server: read once, through failures, and resumed after a kill.

It needs moto and s3fs, which the development environment does not have:

    python -m venv s3 && s3/bin/pip install -e .[dev,s3] 'moto[server]'
    s3/bin/python -m pytest -m soak tests/export/checkpoint/remote/test_s3.py
"""

from __future__ import annotations

import dataclasses
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwonnx.export.checkpoint.resolved_checkpoint import resolve_checkpoint
from qwonnx.export.errors import AccessError
from qwonnx.export.pipeline import ExportOptions, export_checkpoint
from qwonnx.export.planning.check import check_checkpoint
from tests.checkpoints import write_tiny
from tests.export.checkpoint.local_server import LocalHandler, LocalServer, running

pytest.importorskip("moto", reason="moto[server] is not installed: see the module's docstring")
pytest.importorskip("s3fs", reason="s3fs is not installed: see the module's docstring")

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("default")]  # other packages warn

ROOT = Path(__file__).resolve().parents[4]
BUCKET, URL = "models", "s3://models/some/tiny"


class Proxy(LocalServer):
    """In front of moto: counts bytes of objects, and lets every so many requests fail."""

    def __init__(self, port: int) -> None:
        super().__init__(_Handler)
        self.port = port
        self.fails_every = 0
        self.seconds = 0.0
        self.requests = 0
        self.failed = 0
        self.sent = 0
        self.lock = threading.Lock()


class _Handler(LocalHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _respond(self) -> None:
        server = self.server
        with server.lock:
            server.requests += 1
            fails = bool(server.fails_every) and server.requests % server.fails_every == 0
            server.failed += fails
            kind = server.failed % 3
        time.sleep(server.seconds)
        if fails and kind < 2:
            self.send_response((503, 500)[kind])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request(self.command, self.path, headers=dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command == "GET":
            content = content[: len(content) // 2] if fails else content
            self.wfile.write(content)
            self.close_connection = fails
            if "list-type" not in self.path:
                with server.lock:
                    server.sent += len(content)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("s3") / "tiny", num_shards=3)


@pytest.fixture(scope="module")
def expected(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("local") / "artifact"
    export_checkpoint(tiny, out)
    return contents(out)


@pytest.fixture
def s3(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(port=0, verbose=False)
    moto.start()
    port = moto.get_host_and_port()[1]
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIAsomebody",
        "AWS_SECRET_ACCESS_KEY": "secretsecret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
    client.create_bucket(Bucket=BUCKET)
    for path in tiny.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"some/tiny/{path.relative_to(tiny)}")
    try:
        with running(Proxy(port)) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
            s3fs.S3FileSystem.clear_instance_cache()
            yield proxy
    finally:
        moto.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def contents(artifact: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(artifact.iterdir()) if path.name != "manifest.json"}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_an_export_reads_a_bucket_once_while_every_tenth_request_fails(
    s3: Proxy, tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    s3.fails_every = 10
    manifest = export_checkpoint(URL, tmp_path / "out")
    print(f"read {s3.sent / size(tiny):.3f} of {size(tiny)} bytes in {s3.requests} requests, {s3.failed} failed")
    assert contents(tmp_path / "out") == expected
    assert s3.failed >= 2
    assert s3.sent <= 1.05 * size(tiny)
    assert all(file.version and file.sha256 is None for file in manifest.source.files)
    assert b"secret" not in (tmp_path / "out" / "manifest.json").read_bytes()


def test_an_export_that_is_killed_goes_on_with_the_same_bytes(
    s3: Proxy, tiny: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    s3.seconds = 0.05
    out = tmp_path / "out"
    command = [sys.executable, "-m", "qwonnx.handlers.cli", "export", URL, str(out), "--memory", "64MB"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    journal = tmp_path / ".out.incomplete" / "export.journal"
    try:
        deadline = time.monotonic() + 240
        while not (journal.exists() and b'"shard"' in journal.read_bytes()):
            assert first.poll() is None, first.stderr and first.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        first.send_signal(signal.SIGKILL)
    finally:
        first.kill()
        first.communicate()
    s3.seconds, before, s3.sent = 0.0, s3.sent, 0
    resumed: list[int] = []
    options = dataclasses.replace(ExportOptions(), resume=True)
    export_checkpoint(URL, out, options, on_progress=lambda progress: resumed.append(progress.resumed_bytes))
    print(f"read {before} bytes before the kill and {s3.sent} after it, of {size(tiny)}")
    assert contents(out) == expected
    assert max(resumed) > 0
    assert s3.sent <= 1.05 * size(tiny)


def test_a_check_gives_the_same_verdict_from_headers(s3: Proxy, tiny: Path) -> None:
    local = check_checkpoint(str(tiny))
    assert dataclasses.replace(check_checkpoint(URL), name="tiny") == local
    assert s3.sent < size(tiny) / 4


@pytest.mark.parametrize("url", ["s3://models/nothing", "s3://no-such-bucket/tiny"])
def test_what_is_not_there_is_one_line(s3: Proxy, url: str) -> None:
    with pytest.raises(AccessError, match=f"{url} does not exist: check the URL"):
        resolve_checkpoint(url, None)


def test_missing_credentials_are_one_line(s3: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_ENDPOINT_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(AccessError, match="may not be read: check the credentials"):
        resolve_checkpoint(URL, None)


def test_an_endpoint_that_is_not_there_is_one_line(s3: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(AccessError, match=r"cannot be read .*, after several tries"):
        resolve_checkpoint(URL, None)
    assert time.monotonic() - started < 120
