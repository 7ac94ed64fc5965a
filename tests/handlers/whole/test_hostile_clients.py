"""Clients that hold connections, send half of a request, or do not read: others are served, and SIGTERM ends it all."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.serving import MODEL, chat, until
from tests.handlers.whole.served_process import PATH, ServedProcess, process_serving, watched

HEADERS = b"host: x\r\ncontent-type: application/json\r\n"
SHUTDOWN_SECONDS = 1.0
GRACE_SECONDS = SHUTDOWN_SECONDS + 5 + 1  # those of the setting, those to send what is left, and one for a busy machine


def _body(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": chat(), "max_tokens": 2, **fields}).encode()


def _request(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"POST %s HTTP/1.1\r\n%scontent-length: %d\r\n\r\n%s" % (PATH.encode(), HEADERS, size, body)


def _connected(server: ServedProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def _received(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        pass
    return received


def _drip(connection: socket.socket) -> float:
    """Send a byte now and then; the seconds until the server has closed the connection."""
    began = time.monotonic()
    try:
        while time.monotonic() < began + 20:
            connection.sendall(b"a")
            time.sleep(0.05)
    except OSError:
        pass
    return time.monotonic() - began


@contextmanager
def _serving(folder: Path, log: Path, *options: object, **more: Any) -> Iterator[ServedProcess]:
    with process_serving(folder, log, *options, QWONNX_SHUTDOWN_SECONDS=str(SHUTDOWN_SECONDS), **more) as server:
        yield server


class TestConnections:
    def test_more_silent_clients_than_files_leave_room_for_the_others(
        self, counting_folder: Path, tmp_path: Path
    ) -> None:
        with _serving(counting_folder, tmp_path / "log", max_files=256) as server, ExitStack() as held:
            for _ in range(400):
                held.enter_context(_connected(server))
            assert server.health_seconds() < 2
            assert server.post(_body()).status == 200
            assert server.stop(GRACE_SECONDS) < GRACE_SECONDS
        log = server.log.read_text()
        assert "Traceback" not in log
        assert len(log) < 10_000

    def test_half_a_head_and_half_a_body_are_closed_in_time(self, counting_folder: Path, tmp_path: Path) -> None:
        options = ("--header-seconds", 0.5, "--body-seconds", 0.5)
        with _serving(counting_folder, tmp_path / "log", *options) as server, ExitStack() as held:
            silent, half_head, half_body, ignored = (held.enter_context(_connected(server)) for _ in range(4))
            half_head.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\na: ")
            half_body.sendall(_request(b"{", length=1000))
            ignored.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
            began = time.monotonic()
            assert _received(silent) == b""
            assert _received(half_head) == b""
            answer = _received(half_body)
            assert b" 408 " in answer.splitlines()[0]
            assert b"body_timeout" in answer
            assert b" 200 " in _received(ignored).splitlines()[0]  # was answered, and then had to send its body
            assert time.monotonic() - began < 5
            dripping = held.enter_context(_connected(server))
            assert _drip(dripping) < 5
            assert server.post(_body()).status == 200

    def test_a_full_server_closes_a_waiting_connection_and_never_one_with_a_running_answer(
        self, counting_folder: Path, tmp_path: Path
    ) -> None:
        with _serving(counting_folder, tmp_path / "log", "--max-connections", 4) as server, ExitStack() as held:
            answering = held.enter_context(_connected(server))
            answering.sendall(_request(_body(max_tokens=3000, stream=True)))
            assert answering.recv(12) == b"HTTP/1.1 200"
            uploading = held.enter_context(_connected(server))
            uploading.sendall(_request(b"{", length=1000))
            time.sleep(0.2)
            silent = [held.enter_context(_connected(server)) for _ in range(3)]
            assert _received(silent[0]) == b""  # the oldest of those that sent nothing
            more = held.enter_context(_connected(server))
            assert _received(silent[1]) == b""
            assert server.health_seconds() < 5
            received = b""
            while b"[DONE]" not in received:
                received += answering.recv(1 << 16)
            uploading.settimeout(0.05)
            with pytest.raises(TimeoutError):  # still open
                uploading.recv(1)
            assert more.fileno() > 0

    def test_a_client_that_does_not_read_is_left(self, counting_folder: Path, tmp_path: Path) -> None:
        log = tmp_path / "log"
        with _serving(counting_folder, log, QWONNX_SEND_SECONDS="0.5") as server:
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            with connection:
                connection.connect(("127.0.0.1", server.port))
                connection.sendall(_request(_body(max_tokens=4000, stream=True)))
                until(lambda: " 499 " in log.read_text())
            assert server.post(_body()).status == 200


class TestBodies:
    def test_unfinished_bodies_share_a_budget(self, counting_folder: Path, tmp_path: Path) -> None:
        size = 4 << 20
        with (
            _serving(counting_folder, tmp_path / "log", QWONNX_MAX_BODIES_BYTES="16MB") as server,
            ExitStack() as held,
        ):
            before = server.resident_bytes()
            connections = [held.enter_context(_connected(server)) for _ in range(20)]
            for connection in connections:
                connection.sendall(_request(b" " * (size - 100), length=size))
            time.sleep(0.5)
            assert server.resident_bytes() - before < 48 << 20
            assert server.post(_body()).status == 200
            connections[-1].sendall(b" " * 100)
            assert b" 503 " in connections[-1].recv(1 << 16).splitlines()[0]
            for connection in connections:
                connection.close()
            until(lambda: server.post(b" " * size).status == 400)


@pytest.fixture(scope="module")
def server(counting_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedProcess]:
    """A server that the tests of one module share."""
    with _serving(counting_folder, tmp_path_factory.mktemp("shared") / "log") as shared:
        yield shared


class TestFraming:
    def _talk(self, server: ServedProcess, data: bytes) -> bytes:
        with _connected(server) as connection:
            connection.sendall(data)
            connection.settimeout(1)
            received = b""
            try:
                while piece := connection.recv(1 << 16):
                    received += piece
            except TimeoutError:
                received += b"[open]"
            return received

    def test_a_request_with_two_lengths_is_the_last_of_its_connection(self, server: ServedProcess) -> None:
        hidden = b"0\r\n\r\nGET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
        head = b"POST %s HTTP/1.1\r\n%scontent-length: %d\r\ntransfer-encoding: chunked\r\n\r\n"
        received = self._talk(server, head % (PATH.encode(), HEADERS, len(hidden)) + hidden)
        assert received.count(b"HTTP/1.1 ") == 1
        assert b"\r\nconnection: close\r\n" in received
        assert not received.endswith(b"[open]")

    @pytest.mark.parametrize("target", [b"http://evil/health/live", b"HTTPS://evil:80/health/live?a=b"])
    def test_a_target_may_be_absolute(self, server: ServedProcess, target: bytes) -> None:
        received = self._talk(server, b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % target)
        assert b" 200 OK" in received.splitlines()[0]
        assert b'"live"' in received

    @pytest.mark.parametrize("target", [b"http://evil", b"http://evil?/health/live"])
    def test_a_target_without_a_path_is_the_root(self, server: ServedProcess, target: bytes) -> None:
        received = self._talk(server, b"GET %s HTTP/1.1\r\nhost: evil\r\n\r\n" % target)
        assert b" 200 OK" in received.splitlines()[0]
        assert b'"name":"qwonnx"' in received
        assert b"evil" not in received

    @pytest.mark.parametrize("target", [b"*", b"/health/live/", b"//health/live", b"/v1/"])
    def test_other_targets_are_not_found_and_never_redirected(self, server: ServedProcess, target: bytes) -> None:
        received = self._talk(server, b"GET %s HTTP/1.1\r\nhost: evil\r\n\r\n" % target)
        assert b" 404 " in received.splitlines()[0]
        assert b"location" not in received.lower()

    def test_a_body_of_tiny_chunks_is_refused(self, server: ServedProcess) -> None:
        head = b"POST %s HTTP/1.1\r\n%stransfer-encoding: chunked\r\n\r\n" % (PATH.encode(), HEADERS)
        with _connected(server) as connection, watched(server.port) as delays:
            connection.sendall(head)
            with pytest.raises(OSError):  # noqa: PT011 - it is closed, whatever the system calls that
                connection.sendall(b"1\r\n \r\n" * 1_000_000)
        assert max(delays) < 1

    def test_ordinary_chunks_are_a_body(self, server: ServedProcess) -> None:
        body = _body()
        pieces = [body[start : start + 16] for start in range(0, len(body), 16)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        head = b"POST %s HTTP/1.1\r\n%stransfer-encoding: chunked\r\n\r\n" % (PATH.encode(), HEADERS)
        assert b" 200 OK" in self._talk(server, head + chunks + b"0\r\n\r\n").splitlines()[0]


def _silent(server: ServedProcess, held: ExitStack) -> None:
    for _ in range(50):
        held.enter_context(_connected(server))


def _half_heads(server: ServedProcess, held: ExitStack) -> None:
    for _ in range(50):
        held.enter_context(_connected(server)).sendall(b"POST / HTTP/1.1\r\na: ")


def _half_bodies(server: ServedProcess, held: ExitStack) -> None:
    for _ in range(20):
        held.enter_context(_connected(server)).sendall(_request(b" " * 200_000, length=1 << 20))


def _slow_readers(server: ServedProcess, held: ExitStack) -> None:
    for _ in range(4):
        connection = held.enter_context(socket.socket())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(_request(_body(max_tokens=4000, stream=True)))


def _sent(*bodies: bytes) -> Callable[[ServedProcess, ExitStack], None]:
    """An attack by bodies, sent at once and again and again."""

    def attack(server: ServedProcess, held: ExitStack) -> None:
        ended = threading.Event()

        def send(body: bytes) -> None:
            while not ended.is_set():
                try:
                    server.post(body, timeout=30)
                except OSError:
                    time.sleep(0.05)

        for body in bodies:
            thread = threading.Thread(target=send, args=(body,))
            thread.start()
            held.callback(thread.join)
        held.callback(ended.set)  # called first

    return attack


def _format(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


def _strict(value: Any, **more: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"a": value},
        "required": ["a"],
        "additionalProperties": False,
        **more,
    }
    return {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}]}


DOUBLING = {f"d{n}": {"type": "string", "allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(28)}
DOUBLING["d28"] = {"type": "string"}
ENDLESS = {"allOf": [{"type": "integer", "multipleOf": number} for number in (97, 89, 83)]}
ATTACKS: dict[str, Callable[[ServedProcess, ExitStack], None]] = {
    "silent": _silent,
    "half-heads": _half_heads,
    "half-bodies": _half_bodies,
    "slow-readers": _slow_readers,
    "schemas": _sent(
        _body(**_strict({"type": "string", "$ref": "#/$defs/d0"}, **{"$defs": DOUBLING})),
        _body(**_format(ENDLESS)),
        _body(**_format({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}})),
        _body(**_strict({"type": "string", "const": "x" * 2_000_000})),
        _body(**_strict({"type": "string", "enum": [f"value {n}" for n in range(60_000)]})),
    ),
    "expressions": _sent(
        _body(**_strict({"type": "string", "pattern": "[" * 200_000})),
        _body(**_strict({"type": "string", "pattern": "(" * 100_000 + ")" * 100_000})),
        _body(**_strict({"type": "string", "pattern": "(a?){400}a{400}"})),
        _body(structured_outputs={"regex": "(a{1000}){1000}"}),
        _body(structured_outputs={"grammar": "start: T\nT: /((a{1,60}){1,60}){1,60}/"}),
    ),
    "large-bodies": _sent(
        _body(messages=chat() * 100_000),
        b'{"messages": [' + b"[]," * 3_000_000 + b"1]}",
        b"[" * 100_000,
        _body(messages=chat("x" * 30_000)),
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_under_an_attack_health_is_answered_and_sigterm_ends_the_process(
    counting_folder: Path, tmp_path: Path, attack: str
) -> None:
    options = ("--max-model-len", 4096)
    with _serving(counting_folder, tmp_path / "log", *options) as server, ExitStack() as held:
        with watched(server.port) as delays:
            ATTACKS[attack](server, held)
            time.sleep(1.5)
        assert max(delays) < 2, max(delays)
        assert server.stop(GRACE_SECONDS) <= GRACE_SECONDS
        assert server.process.returncode == 0
        print(f"{attack}: health at most {max(delays) * 1e3:.0f} ms")
    assert "Traceback" not in server.log.read_text()
