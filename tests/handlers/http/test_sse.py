"""Event streams, without a server: keep-alives, and the closing of their source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from qwonnx.handlers.http.sse import EventStream, event, named_event

pytestmark = pytest.mark.fast


async def run(response: EventStream, *, leaves_after: float | None = None) -> list[Message]:
    """The bytes that a client gets that stays, or disconnects after some seconds."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(3600 if leaves_after is None else leaves_after)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    try:
        await response({"type": "http"}, receive, send)
    except ClientDisconnect:
        assert leaves_after is not None
    return sent


DONE = event("done")


class Source:
    """Events with pauses; it records whether they were closed."""

    def __init__(self, *pauses: float) -> None:
        self.pauses = pauses
        self.entered = self.left = 0

    async def events(self) -> AsyncGenerator[bytes, None]:
        for pause in self.pauses:
            await asyncio.sleep(pause)
            yield event({"pause": pause})
        yield DONE

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        self.entered += 1
        try:
            yield
        finally:
            self.left += 1

    def response(self, keep_alive_seconds: float = 60) -> EventStream:
        return EventStream(self.events(), self.held(), keep_alive_seconds=keep_alive_seconds)


def test_events_are_data_lines_and_end_with_the_body() -> None:
    source = Source(0, 0)
    start, *bodies = asyncio.run(run(source.response()))
    assert start["status"] == 200
    assert [body["body"] for body in bodies] == [b'data: {"pause":0}\n\n'] * 2 + [b'data: "done"\n\n', b""]
    assert [body["more_body"] for body in bodies] == [True, True, True, False]
    assert (source.entered, source.left) == (1, 1)


def test_comments_keep_a_quiet_connection_alive() -> None:
    bodies = [message.get("body") for message in asyncio.run(run(Source(0.25).response(keep_alive_seconds=0.05)))]
    assert bodies.count(b": keep-alive\n\n") >= 2
    assert bodies[-3:] == [b'data: {"pause":0.25}\n\n', DONE, b""]


@pytest.mark.parametrize("leaves_after", [0, 0.05])
def test_a_source_is_given_back_when_the_client_leaves_even_before_the_first_event(leaves_after: float) -> None:
    source = Source(3600)
    asyncio.run(asyncio.wait_for(run(source.response(), leaves_after=leaves_after), 5))
    assert (source.entered, source.left) == (1, 1)


def test_text_with_line_breaks_stays_one_event() -> None:
    assert event({"text": "a\n\ndata: b\r"}) == b'data: {"text":"a\\n\\ndata: b\\r"}\n\n'
    assert named_event("a.b", {"text": "a\n"}) == b'event: a.b\ndata: {"text":"a\\n"}\n\n'
