"""One request to the application from its own process: a line of a batch, or an event that is no HTTP request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Scope

from qwonnx.handlers.http.exchange import GivenRequest, headers_of


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body comes in pieces.

    status: of HTTP.
    media_type: of the body, without parameters.
    pieces: as the application sends them.
    """

    status: int
    media_type: str
    pieces: AsyncIterator[bytes]

    async def body(self) -> bytes:
        """All pieces."""
        return b"".join([piece async for piece in self.pieces])


@asynccontextmanager
async def asked(app: ASGIApp, method: str, path: str, body: bytes) -> AsyncIterator[Answer]:
    """Send a request with a body of JSON. Leaving the context early is a client that disconnects.

    Args:
        app: the application, without its lifespan.
        path: begins with a slash; has no query.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    request = GivenRequest(body)

    async def run() -> None:
        try:
            await app(scope_of(method, path), request.receive, messages.put)
        finally:
            messages.put_nowait(None)

    answering = asyncio.create_task(run())
    try:
        start = await messages.get()
        if start is None:
            await answering  # raises
            raise RuntimeError("the application has not answered")
        headers = {name.lower(): value for name, value in headers_of(start)}
        media_type = headers.get("content-type", "").partition(";")[0].strip()
        yield Answer(start["status"], media_type, _pieces(messages))
    finally:
        request.leave()
        await asyncio.gather(answering, return_exceptions=True)


async def _pieces(messages: asyncio.Queue[Message | None]) -> AsyncGenerator[bytes, None]:
    while (message := await messages.get()) is not None:
        if piece := message.get("body", b""):
            yield piece
        if not message.get("more_body", False):
            return


def scope_of(method: str, path: str) -> Scope:
    """The scope of a request with a body of JSON that came by no connection."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
    }
