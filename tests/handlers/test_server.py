"""The addresses that a server listens on, and their URLs."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from qwonnx.handlers.server import bind, url_of
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
