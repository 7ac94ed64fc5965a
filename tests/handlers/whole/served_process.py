"""`qwonnx serve` in a process of its own, and a watcher in another that asks for its health all the time."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.handlers.cli.commands import FAST, QWONNX

PATH = "/v1/chat/completions"
_WATCHER = """
import http.client, json, sys, time
port, every, late, delays = int(sys.argv[1]), float(sys.argv[2]), 0, []
print("watching", flush=True)
import select
ended = False
while not ended:
    ended = bool(select.select([sys.stdin], [], [], every)[0])  # and once more after the end
    began = time.perf_counter()
    try:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        client.request("GET", "/health/live")
        assert client.getresponse().status == 200
        client.close()
        delays.append(time.perf_counter() - began)
    except (OSError, http.client.HTTPException, AssertionError):
        delays.append(30.0)
print(json.dumps(delays))
"""


@dataclass(frozen=True, slots=True)
class ServedProcess:
    """A running `qwonnx serve`.

    model: the name for requests.
    """

    process: subprocess.Popen[bytes]
    port: int
    model: str
    log: Path

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def post(self, body: bytes, timeout: float = 60) -> Reply:
        """The answer to one body."""
        began = time.perf_counter()
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            client.request("POST", PATH, body, {"content-type": "application/json"})
            response = client.getresponse()
            content = response.read()
        finally:
            client.close()
        return Reply(response.status, content, time.perf_counter() - began)

    def health_seconds(self, timeout: float = 30) -> float:
        """How long a health check takes.

        Raises:
            OSError: it was not answered.
        """
        began = time.perf_counter()
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        client.request("GET", "/health/live")
        assert client.getresponse().status == 200
        client.close()
        return time.perf_counter() - began

    def stop(self, timeout: float) -> float:
        """Send SIGTERM; the seconds until the process has ended."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout)
        return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, and how long it took."""

    status: int
    content: bytes
    seconds: float


@contextmanager
def process_serving(
    artifact: Path, log: Path, *options: object, max_files: int | None = None, **environment: str
) -> Iterator[ServedProcess]:
    """Serve an artifact, and kill the server at the end.

    Args:
        artifact, options: of the command.
        log: its standard error and output.
        max_files: limit of its open files.
    """
    command = [*QWONNX, "serve", str(artifact), "--port", "0", *map(str, options)]
    if max_files is not None:
        command = ["sh", "-c", f'ulimit -n {max_files} && exec "$@"', "sh", *command]
    environment = {**os.environ, **FAST, "PYTHONUNBUFFERED": "1", **environment}
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as process:
        try:
            yield ServedProcess(process, *_greeting(process, log), log)
        finally:
            process.kill()


def _greeting(process: subprocess.Popen[bytes], log: Path) -> tuple[int, str]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"Serving (\S+) at http://127\.0\.0\.1:(\d+)/v1", log.read_text()):
            return int(found[2]), found[1]
        time.sleep(0.02)
    raise AssertionError(log.read_text())


@contextmanager
def watched(port: int, every: float = 0.02) -> Iterator[list[float]]:
    """Ask for the health all the time; the list has the seconds of each answer when the context has ended."""
    delays: list[float] = []
    command = [sys.executable, "-c", _WATCHER, str(port), str(every)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        try:
            yield delays
        finally:
            written, _ = watcher.communicate(b"\n", timeout=60)
    delays.extend(json.loads(written))
