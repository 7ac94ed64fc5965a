"""A function platform is one file over the public interface: this one has tuples as events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Scope

from qwonnx.handlers import errors
from qwonnx.handlers.app import create_app, error_response, host_from_environment
from qwonnx.handlers.http.deadline import InvocationDeadline
from qwonnx.handlers.settings import ServerSettings
from tests.handlers.serving import MODEL, chat, paced, until

pytestmark = pytest.mark.fast

Answer = tuple[int, Any]


class Platform:
    """The content of a platform's file."""

    def __init__(self) -> None:
        settings = ServerSettings.from_environment()
        self.host = host_from_environment(settings)
        self.host.wait()
        self._app = InvocationDeadline(create_app(self.host, settings), lambda scope: scope.get("dummy.seconds"))

    def handle(self, event: object, seconds: float | None = None) -> Answer:
        """Answer `(method, path, body)` within this many seconds."""
        if not isinstance(event, tuple):
            refusal = error_response(errors.invalid("the event is no tuple: send one", code="invalid_event"))
            return refusal.status_code, json.loads(bytes(refusal.body))
        method, path, document = event
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "dummy.seconds": seconds,
        }
        return asyncio.run(self._call(scope, json.dumps(document).encode()))

    async def _call(self, scope: Scope, content: bytes) -> Answer:
        body: list[bytes] = []
        status = 0
        unread = [content]

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await asyncio.sleep(3600)
            raise AssertionError

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            body.append(message.get("body", b""))

        await self._app(scope, receive, send)
        return status, json.loads(b"".join(body))


@pytest.fixture(scope="module")
def platform(counting_folder: Path) -> Iterator[Platform]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QWONNX_ARTIFACT", str(counting_folder))
        patch.setenv("QWONNX_NUM_THREADS", "1")
        patch.setenv("QWONNX_MAX_MODEL_LEN", "512")
        made = Platform()
    yield made
    made.host.close()


def completion(**fields: Any) -> tuple[str, str, Any]:
    return "POST", "/v1/chat/completions", {"model": MODEL, "messages": chat("Hi"), **fields}


def test_its_events_are_answered_by_the_servers_routes(platform: Platform) -> None:
    assert platform.handle(("GET", "/health/ready", None)) == (200, {"status": "ready"})
    status, document = platform.handle(completion(max_tokens=4))
    assert (status, document["usage"]["completion_tokens"]) == (200, 4)
    status, document = platform.handle(completion(temperature="hot"))
    assert (status, document["error"]["param"]) == (400, "temperature")


def test_what_is_no_event_is_refused_in_the_servers_words(platform: Platform) -> None:
    status, document = platform.handle({"source": "clock"})
    assert (status, document["error"]["code"]) == (400, "invalid_event")


def test_an_answer_ends_before_its_invocation_does(platform: Platform) -> None:
    with paced(platform.host.ready_engine()):
        started = time.monotonic()
        status, document = platform.handle(completion(), seconds=1.0)
        assert time.monotonic() - started < 1.0
        assert (status, document["choices"][0]["finish_reason"]) == (200, "length")
        assert document["choices"][0]["message"]["content"]
        assert platform.handle(completion(), seconds=0.0)[0] == 504
    until(lambda: platform.host.ready_engine().num_live_requests == 0)
