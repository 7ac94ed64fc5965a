"""The addresses that a server listens on, their URLs, and its limit of connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from typing import Any

import pytest

from qwonnx.handlers.http.listener import bind, url_of
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.server import Server, max_connections
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError

pytestmark = pytest.mark.fast


class Listener:
    """Bound to an address that the test names."""

    def __init__(self, *name: Any) -> None:
        self._name = name

    def getsockname(self) -> tuple[Any, ...]:
        return self._name


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (("127.0.0.1", 8000), "http://127.0.0.1:8000"),
        (("0.0.0.0", 80), "http://localhost:80"),
        (("::", 80, 0, 0), "http://localhost:80"),
        (("::1", 8000, 0, 0), "http://[::1]:8000"),
    ],
)
def test_an_address_is_written_as_a_client_on_this_machine_writes_it(name: tuple[Any, ...], url: str) -> None:
    assert url_of(Listener(*name)) == url  # type: ignore[arg-type]


def test_a_client_that_comes_early_waits_instead_of_being_refused() -> None:
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2], timeout=5):
        assert listener.getsockname()[1] > 0


def test_a_taken_port_and_a_strangers_address_are_said_in_a_line() -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(
            SettingsError, match=rf"cannot listen on 127\.0\.0\.1, port {port} \(Address already in use\)"
        ):
            bind("127.0.0.1", port)
    for address, port in (("203.0.113.1", 0), ("no such host", 0)):
        with pytest.raises(SettingsError, match="cannot listen on"):
            bind(address, port)


def test_the_limit_of_connections_fits_the_limit_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 4096))
    assert max_connections(ServerSettings()) == 192
    assert max_connections(ServerSettings(max_connections=7)) == 7
    with pytest.raises(SettingsError, match=r"max_connections is 193 and the process may open 192: .*ulimit -n"):
        max_connections(ServerSettings(max_connections=193))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert max_connections(ServerSettings()) == 512
    assert max_connections(ServerSettings(max_connections=5000)) == 5000


def test_connections_that_cannot_be_accepted_are_told_once_in_a_line(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(ModelHost(lambda: pytest.fail("not loaded")), ServerSettings())
    full = OSError(errno.EMFILE, "Too many open files")

    async def fail(number: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(number):
            server._on_loop_error(loop, {"message": "socket.accept() out of system resource", "exception": full})

    with caplog.at_level(logging.INFO):
        asyncio.run(fail(2000))
        (record,) = caplog.records
        assert "Too many open files" in record.getMessage()
        assert record.exc_info is None
        caplog.clear()

        async def other() -> None:
            server._on_loop_error(asyncio.get_running_loop(), {"message": "a fault", "exception": ValueError("inside")})

        asyncio.run(other())
        assert "ValueError: inside" in caplog.text
