"""Requests inside a process: their answers come in pieces, and leaving early is a client that disconnects."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from qwonnx.handlers.http.in_process import asked

pytestmark = pytest.mark.fast


class Application:
    """Echoes the body in two pieces; the second one waits until it may come."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.saw_disconnect = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        if body == b"fault":
            raise ZeroDivisionError("inside")
        if body == b"nothing":
            return
        await send({"type": "http.response.start", "status": 201, "headers": [(b"Content-Type", b"text/plain; a=b")]})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        leaving = asyncio.ensure_future(receive())
        ending = asyncio.ensure_future(self.may_end.wait())
        await asyncio.wait((leaving, ending), return_when=asyncio.FIRST_COMPLETED)
        self.saw_disconnect = leaving.done() and leaving.result()["type"] == "http.disconnect"
        for task in (leaving, ending):
            task.cancel()
        if not self.saw_disconnect:
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await send({"type": "http.response.body", "body": scope["path"].encode(), "more_body": False})


def test_pieces_come_when_they_are_sent() -> None:
    async def ask() -> list[bytes]:
        application = Application()
        async with asked(application, "POST", "/p", b"hello") as answer:
            assert (answer.status, answer.media_type) == (201, "text/plain")
            first = await anext(answer.pieces)
            application.may_end.set()
            return [first, *[piece async for piece in answer.pieces]]

    assert asyncio.run(ask()) == [b"hello", b"/p"]


def test_leaving_early_is_a_disconnection_that_the_application_has_seen() -> None:
    async def leave() -> bool:
        application = Application()
        async with asked(application, "POST", "/", b"hello") as answer:
            await anext(answer.pieces)
        return application.saw_disconnect

    assert asyncio.run(leave())


@pytest.mark.parametrize(("body", "error"), [(b"fault", ZeroDivisionError), (b"nothing", RuntimeError)])
def test_an_application_that_does_not_answer_is_a_fault_and_no_hang(body: bytes, error: type[Exception]) -> None:
    async def ask() -> None:
        async with asked(Application(), "POST", "/", body):
            raise AssertionError

    with pytest.raises(error):
        asyncio.run(ask())
