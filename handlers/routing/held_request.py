"""A request at one replica, whose answer is held back as long as another replica could still give it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from qwonnx.handlers.routing.affinity import Affinity
from qwonnx.handlers.routing.replicas import Replica
from qwonnx.handlers.routing.upstream import Exchange, Headers, Pool, UpstreamError

_HOLD_SECONDS = 10.0  # a stream's beginning; then its client sees that the connection lives
_MAX_ANSWER_BYTES = 64 << 20  # without a stream


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as it is sent to replicas."""

    method: str
    target: bytes
    headers: Headers
    body: bytes
    affinity: Affinity


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that can be passed on. first: all of it, or of a stream what was held back."""

    status: int
    headers: Headers
    first: bytes
    is_whole: bool


class HeldRequest:
    """A request at one replica, counted there until close()."""

    def __init__(self, pool: Pool, replica: Replica) -> None:
        self.replica = replica
        self._pool = pool
        self._exchange: Exchange | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._upcoming: asyncio.Task[bytes] | None = None
        self._is_open = True
        replica.in_flight += 1

    async def begin(self, asked: Asked) -> Answer:
        """Send the request, and hold the answer back as long as another replica could still give it.

        Raises:
            UpstreamError: the replica has not answered, or not whole.
        """
        exchange = await self._pool.ask(self.replica.address, asked.method, asked.target, asked.headers, asked.body)
        self._exchange, self._chunks = exchange, exchange.chunks()
        is_stream = exchange.head.get(b"content-type").startswith(b"text/event-stream")
        first, whole = await (self._until_token() if is_stream else self._all())
        return Answer(exchange.head.status, exchange.head.headers, first, whole)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The rest of a stream.

        Raises:
            UpstreamError: it broke off.
        """
        while (chunk := await self._next()) is not None:
            yield chunk

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self.replica.in_flight -= 1
            if self._upcoming is not None:
                self._upcoming.cancel()
            if self._exchange is not None:
                self._exchange.close()

    async def _all(self) -> tuple[bytes, bool]:
        parts, size = list[bytes](), 0
        while (chunk := await self._next()) is not None:
            parts.append(chunk)
            size += len(chunk)
            if size > _MAX_ANSWER_BYTES:
                raise UpstreamError(f"the answer has more than {_MAX_ANSWER_BYTES} bytes")
        return b"".join(parts), True

    async def _until_token(self) -> tuple[bytes, bool]:
        """A stream until its second event, the first with a part of the answer, or until it has to be shown."""
        held, deadline = bytearray(), asyncio.get_running_loop().time() + _HOLD_SECONDS
        while _num_events(held) < 2:
            try:
                async with asyncio.timeout_at(deadline):
                    chunk = await self._next()
            except TimeoutError:
                return bytes(held), False
            if chunk is None:
                return bytes(held), True
            held += chunk
        return bytes(held), False

    async def _next(self) -> bytes | None:
        """The next chunk; None at the end. If the wait is cancelled, the chunk is not lost."""
        assert self._chunks is not None
        if self._upcoming is None:
            self._upcoming = asyncio.ensure_future(_next_of(self._chunks))
        try:
            chunk = await asyncio.shield(self._upcoming)
        except StopAsyncIteration:
            return None
        self._upcoming = None
        return chunk

    async def __aenter__(self) -> HeldRequest:
        return self

    async def __aexit__(self, *failure: object) -> None:
        self.close()


async def _next_of(chunks: AsyncIterator[bytes]) -> bytes:
    return await anext(chunks)


def _num_events(data: bytes | bytearray) -> int:
    """Whole events, without comments."""
    blocks = bytes(data).replace(b"\r\n", b"\n").split(b"\n\n")[:-1]
    return sum(1 for block in blocks if not block.lstrip(b"\n").startswith(b":"))
