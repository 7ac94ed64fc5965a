"""Where a stage listens: HOST:PORT, or unix:PATH. Beyond this machine, both ends need one key."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass

from qwonnx.runtime.errors import SettingsError

_UNIX = "unix:"
_LEAST_KEY = 16  # characters
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a machine that vanished is noticed in 25 s


@dataclass(frozen=True, slots=True)
class StageAddress:
    """An address. Of a socket in the file system, path is set; otherwise host and port are."""

    host: str = ""
    port: int = 0
    path: str | None = None

    @classmethod
    def parse(cls, text: str) -> StageAddress:
        """
        Raises:
            SettingsError: the text is no address.
        """
        if text.startswith(_UNIX) and len(text) > len(_UNIX):
            return cls(path=text.removeprefix(_UNIX))
        host, _, port = text.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise SettingsError(f"{text[:120]!r} is no address of a stage: give HOST:PORT or unix:PATH")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        if self.path is not None:
            return f"{_UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def check_key(self, key: str | None) -> None:
        """
        Raises:
            SettingsError: other machines reach the address and there is no key, or the key is short.
        """
        if key is None and not self.is_local:
            raise SettingsError(f"{self} is beyond this machine: set QWONNX_STAGE_KEY, the same for all stages")
        if key is not None and len(key) < _LEAST_KEY:
            raise SettingsError(f"QWONNX_STAGE_KEY has {len(key)} characters: give at least {_LEAST_KEY}")

    def listen(self) -> socket.socket:
        """A listening socket.

        Raises:
            SettingsError: the address cannot be used.
        """
        try:
            if self.path is None:
                family = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0][0]
                return socket.create_server((self.host, self.port), family=family)
            listener = socket.socket(socket.AF_UNIX)
            if os.path.exists(self.path) and _is_abandoned(self.path):
                os.unlink(self.path)
            mask = os.umask(0o177)  # for this user only
            try:
                listener.bind(self.path)
            finally:
                os.umask(mask)
            listener.listen()
        except OSError as error:
            reason = error.strerror or str(error)
            raise SettingsError(f"cannot listen on {self} ({reason}): choose another address") from error
        return listener

    def connect(self, seconds: float) -> socket.socket:
        """A connection.

        Raises:
            OSError: nothing listens there, or it does not answer in time.
        """
        if self.path is None:
            connection = socket.create_connection((self.host, self.port), timeout=seconds)
        else:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(seconds)
            try:
                connection.connect(self.path)
            except OSError:
                connection.close()
                raise
        tune(connection)
        return connection


def tune(connection: socket.socket) -> None:
    """Send small frames at once, and notice a peer that vanished."""
    if connection.family == getattr(socket, "AF_UNIX", None):
        return
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _is_abandoned(path: str) -> bool:
    """Whether a socket's file is left over from a process that was killed."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
