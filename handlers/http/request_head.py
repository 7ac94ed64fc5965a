"""Requests as h11 reads them from a connection, with the rules that it leaves to a server.

- A target in absolute form (`GET http://host/path`) is the path: RFC 9112, 3.2.2.
- After a request with Content-Length and Transfer-Encoding the connection is closed, because a proxy may have believed
  the other header: RFC 9112, 6.1 and 6.3.
- A body in many tiny chunks is refused: each chunk costs as much time as 16 KiB of text.
"""

from __future__ import annotations

import re
from typing import Any

import h11

_AUTHORITY = re.compile(rb"^[hH][tT][tT][pP][sS]?://[^/?#]*")
_CLOSE = (b"connection", b"close")  # as uvicorn looks for it

# Pieces of a body beyond these need on average this many bytes.
_FREE_PIECES = 4096
_BYTES_OF_A_PIECE = 64


class RequestReader(h11.Connection):
    """h11's connection of a server, with these rules."""

    _num_pieces = 0
    _num_bytes = 0

    def next_event(self) -> Any:
        """The next event.

        Raises:
            h11.RemoteProtocolError: the client does not speak HTTP, or its chunks are too small.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_pieces = self._num_bytes = 0
            return _settled(event)
        if isinstance(event, h11.Data):
            self._num_pieces += 1
            self._num_bytes += len(event.data)
            if self._num_pieces > _FREE_PIECES + self._num_bytes // _BYTES_OF_A_PIECE:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event


def _settled(request: h11.Request) -> h11.Request:
    """The request in origin form, and with `connection: close` if its framing is ambiguous."""
    target = request.target
    if found := _AUTHORITY.match(target):
        target = target[found.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    headers = list(request.headers)
    names = {name for name, _ in headers}
    if b"content-length" in names and b"transfer-encoding" in names:
        headers.append(_CLOSE)
    return h11.Request(method=request.method, target=target, headers=headers, http_version=request.http_version)
