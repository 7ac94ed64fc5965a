"""Read a request's body, with limits for its size, its time, and the memory of all bodies together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from msgspec import Struct
from starlette.requests import Request

from qwonnx.handlers.errors import RETRY_AFTER_SECONDS, ErrorKind, ServiceError
from qwonnx.handlers.http.body_budget import BodyBudget

# As much of a body as the server reads before anybody asks for it. Small bodies do not need the budget.
_FREE_BYTES = 64 << 10
_JSON = "application/json"
_SMALL_BYTES = 16 << 10

_Understood = TypeVar("_Understood")


class BodyLimits(Struct, frozen=True):
    """Limits for the bodies of an application.

    max_bytes: of one body.
    seconds: until it has come.
    budget: of all bodies together, beyond their first 64 KiB.
    """

    max_bytes: int
    seconds: float
    budget: BodyBudget


@asynccontextmanager
async def received(
    request: Request, limits: BodyLimits, media_types: Sequence[str] = (_JSON,)
) -> AsyncIterator[bytearray]:
    """Read the body. Its bytes of the budget are given back when the context ends.

    Args:
        media_types: in lower case, that the request may declare. Without one it is JSON.

    Raises:
        ServiceError: 413, by Content-Length before the body is read, or as soon as it exceeds the limit; 408, it did
            not come in time; 503, the budget is taken; 415, it declares another type. The 415 also prevents a web page
            from sending requests to a server on its visitor's machine.
        starlette.requests.ClientDisconnect: the client disconnected.
    """
    media_type = request.headers.get("content-type", _JSON).split(";")[0].strip().lower()
    if media_type not in media_types:
        message = f"the body's content-type is not {' or '.join(media_types)}: set that header"
        raise ServiceError(ErrorKind.INVALID, 415, message, code="invalid_type")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.max_bytes:
        raise _too_large(limits.max_bytes)
    reader = _Reader(limits)
    try:
        try:
            async with asyncio.timeout(limits.seconds):
                await reader.read(request)
        except TimeoutError:
            raise _too_slow(limits.seconds) from None
        yield reader.body
    finally:
        limits.budget.give_back(reader.num_taken)


class _Reader:
    """The body so far, and the bytes of the budget that it has."""

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self.body = bytearray()
        self.num_taken = 0

    async def read(self, request: Request) -> None:
        async for piece in request.stream():
            size = len(self.body) + len(piece)
            if size > self._limits.max_bytes:
                raise _too_large(self._limits.max_bytes)
            more = size - _FREE_BYTES - self.num_taken
            if more > 0:
                if not self._limits.budget.take(more):
                    raise _no_room()
                self.num_taken += more
            self.body += piece


def _too_large(max_bytes: int) -> ServiceError:
    message = f"the body has more than {max_bytes} bytes: shorten the conversation"
    return ServiceError(ErrorKind.TOO_LARGE, 413, message, code="body_too_large", headers={"connection": "close"})


def _too_slow(seconds: float) -> ServiceError:
    message = f"the body did not come within {seconds:g} seconds: send it at once"
    return ServiceError(ErrorKind.TIMEOUT, 408, message, code="body_timeout", headers={"connection": "close"})


def _no_room() -> ServiceError:
    # The connection stays open, and what still comes is read and dropped: a client that still sends would not see this
    # answer on a closed one.
    message = "the server has no memory for the body at the moment: try again later"
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
    return ServiceError(ErrorKind.UNAVAILABLE, 503, message, code="server_busy", headers=headers)


async def read_with(read: Callable[[bytearray], _Understood], body: bytearray) -> _Understood:
    """What a function reads in a body: here if that takes at most a millisecond, otherwise in a thread.

    A thread would add a tenth of a millisecond to every small request.
    """
    return read(body) if len(body) <= _SMALL_BYTES else await asyncio.to_thread(read, body)
