"""Work that lasts as long as its client: it is cancelled, and has ended before the caller continues."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from qwonnx.handlers.http.disconnect import while_connected

pytestmark = pytest.mark.fast


class Client:
    """Sends the rest of a body, and disconnects after some seconds."""

    def __init__(self, stays: float, *, first: int = 0) -> None:
        self._stays = stays
        self._first = first

    async def receive(self) -> Message:
        if self._first:
            self._first -= 1
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.sleep(self._stays)
        return {"type": "http.disconnect"}


class Work:
    """Takes some seconds, and some more to release its resources."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self._seconds = seconds
        self._error = error
        self.ended = False

    async def do(self) -> str:
        try:
            await asyncio.sleep(self._seconds)
            if self._error is not None:
                raise self._error
            return "done"
        finally:
            await asyncio.sleep(0.02)
            self.ended = True


def run(client: Client, work: Work) -> str:
    return asyncio.run(asyncio.wait_for(while_connected(client.receive, work.do()), 10))


def test_work_that_is_done_first_gives_its_result() -> None:
    assert run(Client(3600), Work(0)) == "done"
    assert run(Client(3600, first=2), Work(0.01)) == "done", "what else arrives is thrown away"


def test_a_client_that_leaves_first_ends_the_work_before_anything_goes_on() -> None:
    work = Work(3600)
    with pytest.raises(ClientDisconnect):
        run(Client(0.01, first=1), work)
    assert work.ended


def test_an_error_of_the_work_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError, match="inside"):
        run(Client(3600), Work(0, ZeroDivisionError("inside")))


def test_whoever_is_cancelled_cancels_the_work() -> None:
    work = Work(3600)

    async def main() -> None:
        waiting = asyncio.ensure_future(while_connected(Client(3600).receive, work.do()))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
    assert work.ended
