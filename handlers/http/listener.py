"""The listening socket, bound before anything else of a server is imported: clients that come early wait in it."""

from __future__ import annotations

import socket

from qwonnx.runtime.errors import SettingsError

BACKLOG = 2048  # connections that the system keeps until they are accepted


def bind(address: str, port: int) -> socket.socket:
    """A listening socket. A client that connects early waits and is not refused.

    Args:
        address: only this machine can reach 127.0.0.1.
        port: 0 takes a free one.

    Raises:
        SettingsError: the address is not this machine's, or the port is taken.
    """
    try:
        # A name as text would be encoded by a codec whose tables of Unicode cost every start 1.5 ms.
        name = address.encode() if address.isascii() else address
        family = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((address, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]  # Python adds the address
        raise SettingsError(f"cannot listen on {address}, port {port} ({reason}): choose another") from error


def url_of(listener: socket.socket) -> str:
    """The URL for a client on this machine."""
    address, port = listener.getsockname()[:2]
    if address in ("0.0.0.0", "::"):
        address = "localhost"
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
