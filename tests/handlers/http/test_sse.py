"""Event streams, without a server: keep-alives, and the closing of their source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message

from qwonnx.handlers.http.sse import EventStream, event, named_event

pytestmark = pytest.mark.fast


async def run(response: EventStream, *, leaves_after: float | None = None, seconds_to_send: float = 0) -> list[Message]:
    """The messages for a client that stays, or disconnects after some seconds, and may take its time to read."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(3600 if leaves_after is None else leaves_after)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if seconds_to_send and "body" in message:
            await asyncio.sleep(seconds_to_send)

    try:
        await response({"type": "http"}, receive, send)
    except ClientDisconnect:
        assert leaves_after is not None
    return sent


DONE = event("done")


class Source:
    """Events with pauses; it records whether they were closed."""

    def __init__(self, *pauses: float, fails: bool = False) -> None:
        self.pauses = pauses
        self.fails = fails
        self.entered = self.left = self.given = self.closed = 0

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            for pause in self.pauses:
                if pause:
                    await asyncio.sleep(pause)
                self.given += 1
                yield event({"pause": pause})
            if self.fails:
                raise ZeroDivisionError("inside")
            yield DONE
        finally:
            self.closed += 1

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        self.entered += 1
        try:
            yield
        finally:
            self.left += 1

    def response(self, keep_alive_seconds: float = 60) -> EventStream:
        return EventStream(self.events(), self.held(), keep_alive_seconds=keep_alive_seconds)


def whole(messages: list[Message]) -> bytes:
    return b"".join(message.get("body", b"") for message in messages)


def test_events_are_data_lines_and_end_with_the_body() -> None:
    source = Source(0.01, 0.01)
    start, *bodies = asyncio.run(run(source.response()))
    assert start["status"] == 200
    assert whole(bodies) == b'data: {"pause":0.01}\n\n' * 2 + b'data: "done"\n\n'
    assert [body["more_body"] for body in bodies] == [True] * (len(bodies) - 1) + [False]
    # A client that leaves as soon as it has the last event has left after the end.
    assert bodies[-1]["body"].endswith(b'data: "done"\n\n')
    assert (source.entered, source.left, source.closed) == (1, 1, 1)


def test_events_that_are_ready_together_are_sent_together_and_others_at_once() -> None:
    _, *bodies = asyncio.run(run(Source(0, 0, 0, 0.3, 0).response()))
    assert [body["body"].count(b"data: ") for body in bodies] == [3, 3]


def test_events_that_come_while_others_are_sent_wait_for_one_write() -> None:
    source, sent = Source(*[0.002] * 20), []

    async def main() -> None:
        async def receive() -> Message:
            await asyncio.sleep(3600)
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message.get("body", b"").count(b"data: "))
            while sent[-1] and source.closed == 0:  # the client reads when all have come
                await asyncio.sleep(0.005)

        await source.response()({"type": "http"}, receive, send)

    asyncio.run(main())
    assert sent == [0, 1, 20]


def test_a_source_waits_for_a_client_that_does_not_read() -> None:
    async def main() -> None:
        source = Source(*[0] * 20_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run(source.response(), seconds_to_send=3600), 0.5)
        assert 0 < source.given * len(event({"pause": 0})) < 80 << 10
        assert (source.left, source.closed) == (1, 1)

    asyncio.run(main())


def test_the_events_before_a_fault_are_sent_and_the_fault_is_raised() -> None:
    source = Source(0, 0, fails=True)
    sent: list[Message] = []

    async def main() -> None:
        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            await asyncio.sleep(3600)
            raise AssertionError

        await source.response()({"type": "http"}, receive, send)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert whole(sent).count(b"data: ") == 2
    assert sent[-1].get("more_body") is True  # the answer is cut off, and does not look complete
    assert (source.left, source.closed) == (1, 1)


@given(st.lists(st.sampled_from([0, 0.001, 0.004]), max_size=30), st.sampled_from([0, 0.002]))
@settings(max_examples=25, deadline=None)
def test_whatever_the_pauses_are_every_event_comes_once_in_its_order(pauses: list[float], reads_for: float) -> None:
    source = Source(*pauses)
    sent = whole(asyncio.run(run(source.response(0.003), seconds_to_send=reads_for)))
    assert sent.replace(b": keep-alive\n\n", b"") == b"".join(event({"pause": pause}) for pause in pauses) + DONE
    assert source.closed == 1


def test_comments_keep_a_quiet_connection_alive() -> None:
    bodies = [message.get("body", b"") for message in asyncio.run(run(Source(0.25).response(keep_alive_seconds=0.05)))]
    assert bodies.count(b": keep-alive\n\n") >= 2
    assert b"".join(bodies[-3:]).endswith(b'data: {"pause":0.25}\n\n' + DONE)


def test_a_stream_that_is_not_quiet_has_no_comments() -> None:
    sent = whole(asyncio.run(run(Source(*[0.04] * 18).response(keep_alive_seconds=0.6))))
    assert b": keep-alive" not in sent


@pytest.mark.parametrize("leaves_after", [0, 0.05])
def test_a_source_is_given_back_when_the_client_leaves_even_before_the_first_event(leaves_after: float) -> None:
    source = Source(3600)
    asyncio.run(asyncio.wait_for(run(source.response(), leaves_after=leaves_after), 5))
    assert (source.entered, source.left) == (1, 1)


def test_text_with_line_breaks_stays_one_event() -> None:
    assert event({"text": "a\n\ndata: b\r"}) == b'data: {"text":"a\\n\\ndata: b\\r"}\n\n'
    assert named_event("a.b", {"text": "a\n"}) == b'event: a.b\ndata: {"text":"a\\n"}\n\n'
