"""One request to an ASGI application that did not come by a connection: its body is given, its answer is collected."""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import Message


class GivenRequest:
    """The receiving side: one body, and then nothing until the client leaves.

    Args:
        body: of the request.
    """

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._left = asyncio.Event()

    @property
    def has_left(self) -> bool:
        return self._left.is_set()

    def leave(self) -> None:
        """The client has left: its generation ends within one step."""
        self._left.set()

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}


class WholeAnswer:
    """The sending side of an answer that is carried as a whole. status is 0 until the answer begins."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = headers_of(message)
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")

    @classmethod
    def of(cls, response: Response) -> WholeAnswer:
        """An answer that is ready."""
        answer = cls()
        answer.status = response.status_code
        answer.headers = [(name, value) for name, value in response.headers.items()]
        answer.body += bytes(response.body)
        return answer


def headers_of(message: Message) -> list[tuple[str, str]]:
    """The headers of an answer's beginning."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in message.get("headers", ())]
