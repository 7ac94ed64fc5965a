"""An API is a record and a line in APIS: a new API is served, with its own errors, through these alone."""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from qwonnx.handlers import app as application
from qwonnx.handlers import errors
from qwonnx.handlers.app import APIS, create_app, error_response
from qwonnx.handlers.chat.endpoint import respond
from qwonnx.handlers.chat.parts import End, Part
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http import body, sse
from qwonnx.handlers.http.api import Api
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.text.answer_events import ContentDelta
from tests.handlers.fakes import ask
from tests.handlers.serving import MODEL, RUNTIME, chat

pytestmark = pytest.mark.fast

CHAT = "/v1/chat/completions"


class DummyWriter:
    keep_alive = sse.COMMENT

    """`{"said": ..., "ended": ...}`, or a line for each part."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex

    def piece(self, part: Part, *, stream: bool) -> bytes:
        return part.text.encode() if isinstance(part, ContentDelta) else b""

    async def whole(self, parts: AsyncIterator[Part]) -> bytes:
        said, ended = "", ""
        async for part in parts:
            match part:
                case ContentDelta(text):
                    said += text
                case End(reason):
                    ended = reason.value
        return msgspec.json.encode({"said": said, "ended": ended})

    async def events(self, parts: AsyncIterator[Part]) -> AsyncGenerator[bytes, None]:
        async for part in parts:
            yield f"event: {type(part).__name__}\n\n".encode()


async def _say(request: Request) -> Response:
    host: ModelHost = request.app.state.host
    async with body.received(request, request.app.state.bodies) as data:
        asked = msgspec.json.decode(data)
    engine = host.ready_engine()
    if asked.get("fault"):
        raise ZeroDivisionError("inside")
    wanted = ChatRequest([{"role": "user", "content": asked["text"]}], sampling={"max_tokens": 3})
    return await respond(request, engine, wanted, DummyWriter(), stream=asked.get("stream", False))


def _dummy_error(error: ServiceError) -> Response:
    return JSONResponse({"dummy": error.code}, 418 if error.status == 404 else error.status, error.headers)


DUMMY = Api(
    prefix="/dummy",
    routes=(Route("/dummy/say", _say, methods=["POST"]),),
    error_response=_dummy_error,
    hint="say something",
    key_headers=("x-dummy-key",),
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "APIS", (*APIS, DUMMY))


@pytest.fixture(scope="module")
def host(counting_folder: Path) -> Iterator[ModelHost]:
    made = ModelHost(lambda: Engine.open(counting_folder, RUNTIME))
    made.wait()
    yield made
    made.close()


@pytest.fixture
def app(host: ModelHost) -> Starlette:
    return create_app(host, ServerSettings(api_key="s3cret", max_body_bytes=200))


KEY = {"x-dummy-key": "s3cret"}
BEARER = {"authorization": "Bearer s3cret"}


def test_its_routes_are_served_whole_and_streamed_beside_the_others(app: Starlette) -> None:
    said = ask(app, "POST", "/dummy/say", json={"text": "Hi"}, headers=KEY)
    completion = ask(app, "POST", CHAT, json={"model": MODEL, "messages": chat("Hi"), "max_tokens": 3}, headers=BEARER)
    assert said.json() == {"said": completion.json()["choices"][0]["message"]["content"], "ended": "length"}
    streamed = ask(app, "POST", "/dummy/say", json={"text": "Hi", "stream": True}, headers=KEY)
    assert streamed.text.startswith("event: Begun\n\nevent: ContentDelta\n\n")
    assert streamed.text.endswith("event: End\n\n")


@pytest.mark.parametrize("headers", [{}, {"x-dummy-key": "wrong"}, {"authorization": "Bearer wrong"}])
def test_its_clients_read_of_a_bad_key_in_its_words(app: Starlette, headers: dict[str, str]) -> None:
    answer = ask(app, "POST", "/dummy/say", json={"text": "Hi"}, headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"dummy": "invalid_api_key"})


def _refused(app: Starlette, method: str, path: str, **options: Any) -> tuple[int, Any]:
    answer = ask(app, method, path, headers=KEY, **options)
    assert answer.headers["x-request-id"]
    return answer.status_code, answer.json()


def test_its_clients_read_of_everything_else_in_its_words(app: Starlette) -> None:
    assert _refused(app, "POST", "/dummy/say", json={"text": "x" * 300}) == (413, {"dummy": "body_too_large"})
    assert _refused(app, "GET", "/dummy/nothing") == (418, {"dummy": "route_not_found"})
    assert _refused(app, "GET", "/dummy") == (418, {"dummy": "route_not_found"})
    assert _refused(app, "GET", "/dummy/say") == (405, {"dummy": "method_not_allowed"})
    assert _refused(app, "POST", "/dummy/say", content=b"x", params={}) == (500, {"dummy": "internal_error"})
    assert _refused(app, "POST", "/dummy/say", json={"text": "x", "fault": True}) == (500, {"dummy": "internal_error"})


def test_its_clients_read_in_its_words_that_the_prompt_is_too_long(host: ModelHost) -> None:
    app = create_app(host, ServerSettings())
    told = _refused(app, "POST", "/dummy/say", json={"text": "y" * 600})
    assert told == (400, {"dummy": "context_length_exceeded"})


def test_its_clients_read_in_its_words_that_the_model_is_not_ready(counting_folder: Path) -> None:
    may_load = threading.Event()

    def load() -> Engine:
        may_load.wait()
        return Engine.open(counting_folder, RUNTIME)

    host = ModelHost(load)
    host.start()
    try:
        app = create_app(host, ServerSettings())
        answer = ask(app, "POST", "/dummy/say", json={"text": "Hi"})
        assert (answer.status_code, answer.json()) == (503, {"dummy": "model_not_ready"})
        assert answer.headers["retry-after"] == "1"
    finally:
        may_load.set()
        host.wait()
        host.close()


def test_the_others_and_paths_of_none_speak_as_before(app: Starlette) -> None:
    openai_words = {"message", "type", "param", "code"}
    for path in ("/v1/nothing", "/nothing", "/nothing/else", "/dummyx"):
        answer = ask(app, "GET", path, headers=BEARER)
        assert answer.status_code == 404
        assert answer.json()["error"].keys() == openai_words
        assert "/v1/chat/completions" in answer.json()["error"]["message"]
    assert ask(app, "GET", "/v1/models").json()["error"]["code"] == "invalid_api_key"
    assert ask(app, "GET", "/v1/models", headers={"x-dummy-key": "s3cret"}).status_code == 200
    assert ask(app, "GET", "/health/live").json() == {"status": "live"}


def test_what_refuses_before_the_application_speaks_as_the_path_does() -> None:
    assert bytes(error_response(errors.closing(), "/dummy/say").body) == b'{"dummy":"server_closing"}'
    assert b'"code":"server_closing"' in bytes(error_response(errors.closing()).body)


def test_without_it_its_paths_are_nobodys(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "APIS", APIS)
    answer = ask(create_app(host), "POST", "/dummy/say", json={"text": "Hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "route_not_found")
