"""Requests to a replica: HTTP/1.1 over connections that are kept and used again. h11 reads and writes the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import h11

from qwonnx.handlers.routing.replicas import Address

Headers = list[tuple[bytes, bytes]]

_CONNECT_SECONDS = 2.0
_READ_BYTES = 64 << 10
_MOST_KEPT = 64  # idle connections to one replica
# A host that vanished without a word is noticed after about 10 + 3 * 5 seconds.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


class UpstreamError(Exception):
    """The replica cannot be reached, or broke off."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer."""

    status: int
    headers: Headers

    def get(self, name: bytes) -> bytes:
        return next((value for key, value in self.headers if key == name), b"")


class Exchange:
    """One request and its answer. close() gives the connection back, or closes it if the answer is not at its end."""

    def __init__(self, pool: Pool, address: Address, stream: _Stream, head: Head) -> None:
        self.head = head
        self._pool, self._address, self._stream = pool, address, stream

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            UpstreamError: it broke off.
        """
        while True:
            event = await self._stream.next_event()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                raise UpstreamError("the answer broke off")

    def close(self) -> None:
        self._pool.take_back(self._address, self._stream)


class Pool:
    """Connections to replicas."""

    def __init__(self) -> None:
        self._idle: dict[Address, list[_Stream]] = {}
        self._tls = ssl.create_default_context()

    async def ask(self, address: Address, method: str, target: bytes, headers: Headers, body: bytes) -> Exchange:
        """Send a request and wait for the head of its answer.

        Args:
            address: of the replica.
            method: of HTTP.
            target: path and query.
            headers: without those of the connection.
            body: whole.

        Raises:
            UpstreamError: there is no answer.
        """
        request = h11.Request(
            method=method,
            target=target,
            headers=[(b"host", _host(address)), (b"content-length", b"%d" % len(body)), *headers],
        )
        while (idle := self._kept(address)) is not None:
            with contextlib.suppress(UpstreamError):  # it may have been closed since its last answer
                return Exchange(self, address, idle, await idle.ask(request, body))
        stream = await self._connected(address)
        return Exchange(self, address, stream, await stream.ask(request, body))

    def take_back(self, address: Address, stream: _Stream) -> None:
        kept = self._idle.setdefault(address, [])
        if stream.begin_again() and len(kept) < _MOST_KEPT:
            kept.append(stream)
        else:
            stream.close()

    def forget(self, address: Address) -> None:
        """Close what is kept to a replica."""
        for stream in self._idle.pop(address, ()):
            stream.close()

    def close(self) -> None:
        for address in list(self._idle):
            self.forget(address)

    def _kept(self, address: Address) -> _Stream | None:
        kept = self._idle.get(address, [])
        while kept:
            stream = kept.pop()
            if stream.is_usable:
                return stream
            stream.close()
        return None

    async def _connected(self, address: Address) -> _Stream:
        tls = self._tls if address.tls else None
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(address.host, address.port, ssl=tls)
        except (OSError, TimeoutError) as error:
            raise UpstreamError(f"{address} cannot be reached ({type(error).__name__})") from error
        _keep_alive(writer.get_extra_info("socket"))
        return _Stream(reader, writer)


class _Stream:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._protocol = h11.Connection(h11.CLIENT)

    @property
    def is_usable(self) -> bool:
        return not self._reader.at_eof() and not self._writer.is_closing()

    async def ask(self, request: h11.Request, body: bytes) -> Head:
        """
        Raises:
            UpstreamError: there is no answer; the connection is closed.
        """
        try:
            for event in (request, h11.Data(data=body), h11.EndOfMessage()):
                self._writer.write(self._protocol.send(event) or b"")
            await self._writer.drain()
            while True:
                answer = await self.next_event()
                if isinstance(answer, h11.Response):
                    headers = [(bytes(name), bytes(value)) for name, value in answer.headers]
                    return Head(answer.status_code, headers)
                if isinstance(answer, h11.ConnectionClosed):
                    raise UpstreamError("the connection was closed before the answer")
        except (OSError, h11.ProtocolError) as error:
            self.close()
            raise UpstreamError(f"no answer ({type(error).__name__})") from error
        except BaseException:
            self.close()
            raise

    async def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """
        Raises:
            UpstreamError: the connection broke.
        """
        try:
            while (event := self._protocol.next_event()) is h11.NEED_DATA:
                self._protocol.receive_data(await self._reader.read(_READ_BYTES))
        except (OSError, h11.ProtocolError) as error:
            raise UpstreamError(f"the answer broke off ({type(error).__name__})") from error
        return event

    def begin_again(self) -> bool:
        """Make ready for another request; False if the connection cannot take one."""
        if self._protocol.our_state is not h11.DONE or self._protocol.their_state is not h11.DONE:
            return False
        self._protocol.start_next_cycle()
        return self.is_usable

    def close(self) -> None:
        self._writer.transport.abort()


def _host(address: Address) -> bytes:
    return str(address).partition("://")[2].encode()


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def resolved(name: str, port: int) -> Sequence[Address]:
    """All addresses of a name.

    Raises:
        OSError: it has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return sorted({Address(str(each[4][0]), port) for each in found}, key=str)
