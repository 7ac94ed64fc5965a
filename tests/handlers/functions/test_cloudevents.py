"""Conversations in CloudEvents, sent and read by the package of the specification's authors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http

from tests.handlers.functions.platforms import BODY, content_of, post, serving_on
from tests.handlers.serving import Served, chat

pytestmark = pytest.mark.fast

STRUCTURED = {"content-type": "application/cloudevents+json"}


@pytest.fixture(scope="module")
def knative(counting_folder: Path) -> Iterator[Served]:
    with serving_on("cloudevents", counting_folder, QWONNX_MAX_BODY_BYTES="50kB", QWONNX_NO_KEY="1") as served:
        yield served


def event(data: Any, **attributes: str) -> CloudEvent:
    return CloudEvent({"type": "com.example.question", "source": "/shop", "id": "q-1", **attributes}, data)


def send(served: Served, headers: dict[str, str], content: bytes | str) -> httpx.Response:
    with served.http() as client:
        return client.post("/", headers=headers, content=content)


def error_of(answer: httpx.Response) -> Any:
    data: Any = read(answer).get_data()
    return data["error"]


def read(answer: httpx.Response) -> CloudEvent:
    assert answer.headers["content-type"] == "application/cloudevents+json"
    return from_http(dict(answer.headers), answer.content)


@pytest.mark.parametrize("mode", [to_structured, to_binary], ids=["structured", "binary"])
def test_a_question_is_answered_by_an_event_that_names_it(knative: Served, mode: Any) -> None:
    headers, content = mode(event(dict(BODY), datacontenttype="application/json"))
    answer = send(knative, {"content-type": "application/json", **headers}, content)
    assert answer.status_code == 200
    replied = read(answer)
    assert (replied["type"], replied["source"], replied["subject"]) == ("ai.qwonnx.answer", "qwonnx", "q-1")
    assert replied["datacontenttype"] == "application/json"
    assert replied["id"] != "q-1"
    assert content_of(replied.get_data()) == content_of(post(knative, "/v1/chat/completions").json())


def test_data_as_base64_counts_too(knative: Served) -> None:
    headers, content = to_structured(event(json.dumps(dict(BODY)).encode()))
    assert b"data_base64" in content
    assert read(send(knative, headers, content))["type"] == "ai.qwonnx.answer"


@pytest.mark.parametrize(
    ("fields", "parameter"), [({"temperature": "hot"}, "temperature"), ({"stream": True}, "stream"), ({"n": 9}, "n")]
)
def test_a_refusal_is_an_event_with_the_apis_status_and_error(
    knative: Served, fields: dict[str, Any], parameter: str
) -> None:
    headers, content = to_structured(event({**BODY, **fields}))
    answer = send(knative, headers, content)
    assert answer.status_code == 400, "the sender must not deliver it again"
    refused = read(answer)
    assert (refused["type"], refused["subject"]) == ("ai.qwonnx.error", "q-1")
    assert error_of(answer)["param"] == parameter


def test_an_event_of_another_kind_is_told_what_its_data_lacks(knative: Served) -> None:
    headers, content = to_structured(event({"bucket": "b", "name": "n"}, type="google.cloud.storage.object"))
    answer = send(knative, headers, content)
    assert (answer.status_code, read(answer)["type"]) == (400, "ai.qwonnx.error")


def test_the_servers_own_events_are_taken_without_an_answer(knative: Served) -> None:
    headers, content = to_structured(event(dict(BODY), type="ai.qwonnx.answer"))
    answer = send(knative, headers, content)
    assert (answer.status_code, answer.content) == (202, b"")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"specversion": "1.0"}',
        b'{"specversion": [], "type": "t", "source": "s", "id": "1", "data": {}}',
        b'{"specversion": "9", "type": "t", "source": "s", "id": "1", "data": {}}',
        b'{"specversion": "1.0", "type": "t", "source": "s", "id": "1"}',
        b'{"specversion": "1.0", "type": 1, "source": "s", "id": "1", "data": {}}',
        b'{"specversion": "1.0", "type": "t", "source": "s", "id": "1", "data": "\\ud800"}',
        b'{"specversion": "1.0", "type": "t", "source": "s", "id": "1", "data": 123456789012345678901234567890}',
        b'{"specversion": "1.0", "type": "t", "source": "s", "id": "1", "data_base64": "%%%"}',
        b'{"specversion": "1.0", "type": "t", "source": "s", "id": "1", "data": ' + b"[" * 9000 + b"]" * 9000 + b"}",
        b'{"specversion": "1.0", "type": "t", "source": "s", "id": "' + b"x" * 600 + b'", "data": {}}',
    ],
)
def test_what_is_no_event_is_a_400_and_never_a_fault(knative: Served, content: bytes) -> None:
    answer = send(knative, STRUCTURED, content)
    assert answer.status_code == 400
    assert read(answer)["type"] == "ai.qwonnx.error"


def test_a_body_over_the_limit_and_a_batch_are_refused_in_events(knative: Served) -> None:
    headers, content = to_structured(event({**BODY, "messages": chat("x" * 50_000)}))
    large = send(knative, headers, content)
    assert (large.status_code, error_of(large)["code"]) == (413, "body_too_large")
    batch = send(knative, {"content-type": "application/cloudevents-batch+json"}, b"[]")
    assert (batch.status_code, read(batch)["type"]) == (415, "ai.qwonnx.error")


def test_a_key_is_needed_if_there_is_one_and_health_needs_none(counting_folder: Path) -> None:
    with serving_on("cloudevents", counting_folder, QWONNX_API_KEY="secret") as served:
        headers, content = to_structured(event(dict(BODY)))
        assert send(served, headers, content).status_code == 401
        assert send(served, {**headers, "authorization": "Bearer secret"}, content).status_code == 200
        with served.http() as client:
            assert client.get("/health/ready").status_code == 200
