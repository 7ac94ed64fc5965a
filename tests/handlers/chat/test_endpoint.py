"""A chat over HTTP with a writer that belongs to no real API: whole, streamed, cut off, saved."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message

from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.chat.endpoint import respond
from qwonnx.handlers.chat.parts import Part
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http import sse
from qwonnx.handlers.http.deadline import InvocationDeadline
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from tests.handlers.fakes import ask
from tests.handlers.serving import RUNTIME, chat, paced, until

pytestmark = pytest.mark.fast


class PlainWriter:
    """Writes the names of the parts, one per line."""

    keep_alive = sse.COMMENT

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex

    def piece(self, part: Part, *, stream: bool) -> bytes:
        return type(part).__name__.encode()

    async def whole(self, parts: AsyncIterator[Part]) -> bytes:
        return json.dumps([type(part).__name__ async for part in parts]).encode()

    async def events(self, parts: AsyncIterator[Part]) -> AsyncGenerator[bytes, None]:
        yield b"begin\n"
        try:
            async for part in parts:
                yield f"{type(part).__name__}\n".encode()
        except ServiceError as error:
            yield f"{error.code}\n".encode()


@pytest.fixture(scope="module")
def engine(counting_folder: Path) -> Iterator[Engine]:
    with Engine.open(counting_folder, RUNTIME) as opened:
        opened.start()
        yield opened


def app(
    engine: Engine, *, stream: bool, max_tokens: int = 3, text: str = "Hi", capsules: CapsuleStore | None = None
) -> Starlette:
    async def answer(request: Request) -> Response:
        asked = ChatRequest([*chat(text)], sampling={"max_tokens": max_tokens})  # type: ignore[list-item]
        return await respond(request, engine, asked, PlainWriter(), stream=stream)

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return PlainTextResponse(error.code or "", error.status)

    made = Starlette(routes=[Route("/", answer)], exception_handlers={ServiceError: refuse})
    made.state.settings = ServerSettings()
    made.state.capsules = capsules
    return made


def test_a_whole_answer_is_one_json_body(engine: Engine) -> None:
    answer = ask(app(engine, stream=False), "GET", "/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()[-1] == "End"
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_a_stream_has_the_same_parts(engine: Engine) -> None:
    answer = ask(app(engine, stream=True), "GET", "/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    lines = answer.text.split()
    assert lines == ["begin", "Begun", *["ContentDelta"] * (len(lines) - 3), "End"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_is_refused_with_a_status_streamed_or_not(engine: Engine, stream: bool) -> None:
    answer = ask(app(engine, stream=stream, text="y" * 600), "GET", "/")
    assert (answer.status_code, answer.text) == (400, "context_length_exceeded")


@pytest.mark.parametrize(("remaining", "status"), [(9.0, 200), (0.0, 504)])
@pytest.mark.parametrize("stream", [False, True])
def test_an_invocation_that_waits_for_the_whole_answer_gets_the_status_of_a_late_one(
    engine: Engine, stream: bool, remaining: float, status: int
) -> None:
    with paced(engine):
        answer = ask(InvocationDeadline(app(engine, stream=stream), lambda scope: remaining), "GET", "/")
    assert answer.status_code == status
    until(lambda: engine.num_live_requests == 0, 2)


def test_a_stream_that_has_no_invocation_says_so_as_an_event(engine: Engine) -> None:
    late = app(engine, stream=True, max_tokens=400)
    late.state.settings = ServerSettings(max_answer_seconds=1e-6)
    with paced(engine):
        answer = ask(late, "GET", "/")
    assert (answer.status_code, answer.text.split()) == (200, ["begin", "deadline_exceeded"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_generation(engine: Engine, stream: bool) -> None:
    async def test() -> None:
        messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await asyncio.sleep(0.1)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            pass

        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        with pytest.raises(ClientDisconnect):
            await app(engine, stream=stream, max_tokens=400)(scope, receive, send)

    with paced(engine):
        asyncio.run(asyncio.wait_for(test(), 10))
        until(lambda: engine.num_live_requests == 0, 2)


@pytest.mark.parametrize("stream", [False, True])
def test_the_conversation_is_kept_once_the_answer_is_out(engine: Engine, tmp_path: Path, stream: bool) -> None:
    capsules = CapsuleStore(str(tmp_path / "capsules"))
    assert ask(app(engine, stream=stream, capsules=capsules), "GET", "/").status_code == 200
    assert len(list((tmp_path / "capsules").iterdir())) == 1
