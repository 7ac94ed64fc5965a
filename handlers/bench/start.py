"""One start of a server: from the start of its process to the first streamed text, seen from outside.

The server may be ours, or any with OpenAI's chat completions. Memory and processor time are read from /proc (Linux).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwonnx.handlers.bench.errors import BenchError
from qwonnx.runtime.engine.startup import FILE_VARIABLE

PORT = "{port}"  # in a command
MODEL = "bench"  # asked for first
_QUESTION = "What is Germany called in Swahili?"
_POLL_SECONDS = 0.002
_ASK_SECONDS = 600.0
_LAST_LINES = 5
_MEMORY = re.compile(r"^(Rss|Anonymous):\s+(\d+) kB", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a start, in seconds from the start of the process, and its processor time."""

    name: str
    begin: float
    end: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Start:
    """One start. Times in seconds from the start of the process.

    listening_s: its port accepts connections.
    ready_s: it says that it is ready; None: it does not tell.
    first_text_s: the first piece of an answer is here.
    cpu_s: processor time of the process until then.
    resident_bytes, anonymous_bytes: of its memory then; anonymous memory has no file behind it.
    phases: if it tells them.
    """

    listening_s: float
    ready_s: float | None
    first_text_s: float
    cpu_s: float
    resident_bytes: int
    anonymous_bytes: int
    phases: tuple[Phase, ...]


def measure(command: Sequence[str], *, seconds: float) -> Start:
    """Start a server, ask it one question, and end it.

    Args:
        command: the program and its arguments; {port} is replaced by a free port of 127.0.0.1.
        seconds: the longest time to the first text.

    Raises:
        BenchError: the command cannot be run, ends before it answers, or does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word.replace(PORT, str(port)) for word in command]
    with tempfile.TemporaryDirectory(prefix="qwonnx-bench-") as folder:
        report = Path(folder) / "startup.json"
        environment = {**os.environ, FILE_VARIABLE: str(report)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installation has compiled modules
        with (Path(folder) / "log").open("w+") as log:
            began = time.monotonic()
            try:
                process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
            except OSError as error:
                raise BenchError(f"{words[0]} cannot be run ({error.strerror}): give a program's path") from error
            try:
                return _observed(process, port, began, seconds, report)
            except _EndedError:
                log.seek(0)
                said = " / ".join(line.strip() for line in log.readlines()[-_LAST_LINES:]) or "it said nothing"
                raise BenchError(f"{words[0]} ended before it answered: {said}") from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
                process.wait()


class _EndedError(Exception):
    """The process ended by itself."""


def _observed(process: subprocess.Popen[bytes], port: int, began: float, seconds: float, report: Path) -> Start:
    deadline = began + seconds
    listening: float | None = None
    model = MODEL
    while True:
        if process.poll() is not None:
            raise _EndedError
        if time.monotonic() > deadline:
            raise BenchError(f"no answer within {seconds:g} s: give more --seconds, or try the command by hand")
        try:
            if listening is None:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                listening = time.monotonic() - began
            status = _ask(port, model)
            if status == http.client.OK:
                break
            if status == http.client.NOT_FOUND:
                model = _model_of(port)
        except (OSError, http.client.HTTPException):
            pass  # it starts
        time.sleep(_POLL_SECONDS)
    first_text = time.monotonic() - began
    cpu, memory = _cpu_seconds(process.pid), _memory(process.pid)
    ready, phases = _told(report, began)
    return Start(listening, ready, first_text, cpu, memory.get("Rss", 0), memory.get("Anonymous", 0), phases)


def _ask(port: int, model: str) -> int:
    """The status of an answer; of 200 once its first text is here.

    Raises:
        OSError, HTTPException: there is no answer yet, or it broke off.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": _QUESTION}],
        "chat_template_kwargs": {"enable_thinking": False},
        "max_tokens": 4,
        "stream": True,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ASK_SECONDS)
    with contextlib.closing(connection):
        headers = {"content-type": "application/json", **_authorization()}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            return answer.status
        for line in answer:
            text = line.decode(errors="replace").removeprefix("data: ").strip()
            if text.startswith("{") and _says_something(json.loads(text)):
                return answer.status
    raise http.client.HTTPException("the stream ended without text")


def _says_something(chunk: dict[str, Any]) -> bool:
    for choice in chunk.get("choices", ()):
        delta = choice.get("delta", {})
        if delta.get("content") or delta.get("reasoning_content") or choice.get("finish_reason"):
            return True
    return False


def _model_of(port: int) -> str:
    """The first model that the server names."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ASK_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/models", headers=_authorization())
        listed = json.loads(connection.getresponse().read() or b"{}")
        models = listed.get("data") if isinstance(listed, dict) else None
        return str(models[0].get("id", MODEL)) if models else MODEL


def _authorization() -> dict[str, str]:
    key = os.environ.get("QWONNX_API_KEY", "")
    return {"authorization": f"Bearer {key}"} if key else {}


def _told(report: Path, began: float) -> tuple[float | None, tuple[Phase, ...]]:
    """When the server was ready by its own account, and its phases."""
    try:
        told = json.loads(report.read_text(encoding="utf-8"))
    except OSError:
        return None, ()
    phases = (
        Phase(
            each["name"],
            0.0 if each["began"] is None else each["began"] - began,
            each["ended"] - began,
            each["cpu_s"],
        )
        for each in told["phases"]
    )
    return told["ready"] - began, tuple(sorted(phases, key=lambda each: each.begin))


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process and of the children that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> dict[str, int]:
    """Bytes by name."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return {}
    return {name: int(kilobytes) * 1024 for name, kilobytes in _MEMORY.findall(text)}
