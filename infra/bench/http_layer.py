"""The HTTP layer alone: events a second and the time to the first one, with an engine that answers at once.

    python -m infra.bench.http_layer ARTIFACT [--streams 16] [--rounds 5] [--other CHECKOUT] [--loop uvloop]

One server process (instant_server.py) for each checkout; both stay up, and take turns. A round is one streamed chat on
each of so many connections, all at once; the client counts what has arrived. Then single short chats are timed. Events
a second depend on what else the machine does; processor time of the server for an event does so less. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from infra.bench.measured import ratio_summary

_ROOT = Path(__file__).resolve().parents[2]
_READY_SECONDS = 60.0
_DONE = b"data: [DONE]\n\n"
_EVENTS_BESIDE_TOKENS = 3  # the role, the finish reason, [DONE]
_RECEIVED_BYTES = 1 << 16


@dataclass(slots=True)
class Measured:
    """Of one checkout, a number a round: events/s, the server's microseconds for an event; and seconds of chats."""

    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=600, help="of an answer; an event each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chats", type=int, default=50, help="single ones a round, for the time to the first event")
    parser.add_argument("--step-milliseconds", type=float, default=0.0, help="that a step of the engine takes")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--other", type=Path, metavar="CHECKOUT", help="another state of the sources, to compare with")
    parser.add_argument("--other-loop", choices=("asyncio", "uvloop"), help="its event loop; by default the same")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        pace = options.step_milliseconds
        ports = [stack.enter_context(_served(_ROOT, options.artifact, options.loop, pace))]
        if options.other is not None:
            loop = options.other_loop or options.loop
            ports.append(stack.enter_context(_served(options.other.resolve(), options.artifact, loop, pace)))
        found = [Measured() for _ in ports]
        for number in range(options.rounds + 1):
            for port, measured in zip(ports, found, strict=True):
                into = measured if number else Measured()  # the first round warms both up
                _round(port, options.streams, options.tokens, into)
                into.first_s += [_first_seconds(port) for _ in range(options.chats)]
    result: dict[str, object] = {
        "benchmark": "http_layer",
        "streams": options.streams,
        "loop": options.loop,
        "step_ms": pace,
        **_summary(found[0]),
    }
    if options.other is not None:
        result["other"] = _summary(found[1])
        result["events_over_other"] = ratio_summary(found[0].rates, found[1].rates)
        result["cpu_of_other_over_ours"] = ratio_summary(found[1].cpu_us, found[0].cpu_us)
    print(json.dumps(result))


def _summary(measured: Measured) -> dict[str, float]:
    return {
        "events_per_second": round(statistics.median(measured.rates)),
        "server_cpu_us_per_event": round(statistics.median(measured.cpu_us), 1),
        "first_event_ms_median": round(1000 * statistics.median(measured.first_s), 2),
        "first_event_ms_lowest": round(1000 * min(measured.first_s), 2),
    }


@contextmanager
def _served(checkout: Path, artifact: Path, loop: str, step_milliseconds: float) -> Iterator[int]:
    """The port of a server of this checkout."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    program = Path(__file__).with_name("instant_server.py")
    options = ["--loop", loop, "--step-milliseconds", str(step_milliseconds)]
    command = [sys.executable, str(program), str(artifact.resolve()), str(port), *options]
    environment = {**os.environ, "PYTHONPATH": str(checkout / "infra" / "typing")}
    with subprocess.Popen(command, env=environment, cwd=checkout, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_until_ready(port)
            yield port
        finally:
            process.terminate()


def _wait_until_ready(port: int) -> None:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=_READY_SECONDS) as connection:
                connection.sendall(b"GET /health/ready HTTP/1.1\r\nhost: bench\r\n\r\n")
                if b" 200 " in connection.recv(_RECEIVED_BYTES):
                    return
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"the server did not start in {_READY_SECONDS:.0f} s: run infra/bench/instant_server.py by itself")


@cache
def _model_of(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=_READY_SECONDS) as answer:
        name: str = json.load(answer)["data"][0]["id"]
    return name


def _request(port: int, tokens: int) -> bytes:
    body = json.dumps(
        {
            "model": _model_of(port),
            "messages": [{"role": "user", "content": "Say something."}],
            "max_tokens": tokens,
            "stream": True,
            "reasoning_effort": "none",  # else the words of a model that thinks are no text
        }
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + body


def _round(port: int, streams: int, tokens: int, into: Measured) -> None:
    """One chat on each of so many connections, all at once."""
    cpu = _cpu_seconds(port)
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        for _ in range(streams):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            selector.register(connection, selectors.EVENT_READ, bytearray())
        began = time.perf_counter()
        request = _request(port, tokens)
        for key in list(selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.sendall(request)
        while selector.get_map():
            for key, _ in selector.select(_READY_SECONDS):
                assert isinstance(key.fileobj, socket.socket)
                received = _more(key.fileobj)
                end: bytearray = key.data
                end[:] = end[-len(_DONE) :] + received
                if _DONE in end:
                    selector.unregister(key.fileobj)
        seconds = time.perf_counter() - began
    events = streams * (tokens + _EVENTS_BESIDE_TOKENS)
    into.rates.append(events / seconds)
    into.cpu_us.append(1e6 * (_cpu_seconds(port) - cpu) / events)


def _cpu_seconds(port: int) -> float:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /cpu HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
        answer = b""
        while piece := connection.recv(_RECEIVED_BYTES):
            answer += piece
    return float(answer.rpartition(b"\r\n")[2])


def _first_seconds(port: int) -> float:
    """From a short chat's request to the first event with text."""
    request = _request(port, 3)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        began = time.perf_counter()
        connection.sendall(request)
        received = b""
        while b'"content":" word"' not in received:
            received += _more(connection)
        seconds = time.perf_counter() - began
        while _DONE not in received:
            received += _more(connection)
        return seconds


def _more(connection: socket.socket) -> bytes:
    received = connection.recv(_RECEIVED_BYTES)
    assert received, "the server has closed a stream"
    return received


if __name__ == "__main__":
    main()
