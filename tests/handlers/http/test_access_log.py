"""The outermost middleware: one line and one id per request, and no internals of a fault in an answer."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.access_log import AccessLog
from qwonnx.handlers.http.api import Api, Apis
from tests.handlers.fakes import ask

pytestmark = pytest.mark.fast


def _speak(error: ServiceError) -> Response:
    return PlainTextResponse(f"{error.kind.value}", error.status)


APIS = Apis([Api("/v1", (), _speak, "")])


async def _fail(scope: Scope, receive: Receive, send: Send) -> None:
    raise ZeroDivisionError("inside")


async def _leave(scope: Scope, receive: Receive, send: Send) -> None:
    raise ClientDisconnect


async def _fail_late(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise ZeroDivisionError("inside")


def logged(app: ASGIApp) -> AccessLog:
    return AccessLog(app, apis=APIS)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "qwonnx.access")


def test_a_line_has_method_path_status_seconds_and_id_and_no_query(caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(logged(PlainTextResponse("hello", 201)), "PUT", "/a b?key=hunter2", headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    (line,) = lines(caplog)
    assert re.fullmatch(r"PUT /a%20b 201 \d\.\d{3}s mine-1", line)


@pytest.mark.parametrize("given", ["a b", "", "x" * 65, "a/b", "é"])
def test_an_id_that_could_harm_a_log_is_replaced(given: str) -> None:
    headers = [(b"x-request-id", given.encode("latin-1"))]
    made = ask(logged(PlainTextResponse("hello")), "GET", "/", headers=headers).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)


def test_no_path_forges_a_line_or_fills_the_log(caplog: pytest.LogCaptureFixture) -> None:
    ask(logged(PlainTextResponse("hello")), "GET", "/a%0Ab" + "c" * 1000)
    (line,) = lines(caplog)
    assert line.startswith("GET /a%0Ab")
    assert "\n" not in line
    assert len(line) < 300


def test_a_fault_is_a_500_in_the_apis_words_and_a_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    answer = ask(logged(_fail), "GET", "/v1/x", headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.text, answer.headers["x-request-id"]) == (500, "internal", "mine")
    assert "request mine failed" in caplog.text
    assert "ZeroDivisionError: inside" in caplog.text
    assert lines(caplog)[0].startswith("GET /v1/x 500 ")


def test_a_fault_after_the_status_can_only_cut_the_answer_off(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    scope = {"type": "http", "method": "GET", "path": "/v1", "headers": []}
    with pytest.raises(ZeroDivisionError):
        asyncio.run(logged(_fail_late)(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert lines(caplog)[0].startswith("GET /v1 200 ")


def test_a_client_that_left_is_a_499_and_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        scope = {"type": "http", "method": "GET", "path": "/v1", "headers": []}
        await logged(_leave)(scope, None, None)  # type: ignore[arg-type]

    asyncio.run(main())
    assert lines(caplog)[0].startswith("GET /v1 499 ")
    assert "failed" not in caplog.text


def test_what_is_no_request_passes(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    asyncio.run(logged(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
    assert lines(caplog) == []
