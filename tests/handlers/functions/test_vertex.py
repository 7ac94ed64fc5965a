"""Vertex AI's routes: the API's body as it is, and as the one element of `instances`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.model_host import ModelHost
from tests.handlers.fakes import ask
from tests.handlers.functions.platforms import BODY, check_stream, content_of, found, get, post, serving_on
from tests.handlers.serving import Served, chat

pytestmark = pytest.mark.fast

PREDICT = "/v1/endpoints/1/deployedModels/2:predict"
HEALTH = "/v1/endpoints/1/deployedModels/2"


@pytest.fixture(scope="module")
def vertex(counting_folder: Path) -> Iterator[Served]:
    variables = {"AIP_HTTP_PORT": "8080", "AIP_HEALTH_ROUTE": HEALTH, "AIP_PREDICT_ROUTE": PREDICT}
    with serving_on("vertex", counting_folder, QWONNX_MAX_BODY_BYTES="100kB", **variables) as served:
        yield served


def test_health_is_the_servers_readiness(vertex: Served) -> None:
    assert (get(vertex, HEALTH).status_code, get(vertex, HEALTH).json()) == (200, {"status": "ready"})


def test_a_conversation_is_answered_as_it_is_and_as_the_one_instance(vertex: Served) -> None:
    raw = post(vertex, PREDICT)
    wrapped = post(vertex, PREDICT, {"instances": [BODY]})
    assert (raw.status_code, wrapped.status_code) == (200, 200)
    assert wrapped.headers["content-type"] == "application/json"
    assert list(wrapped.json()) == ["predictions"]
    (prediction,) = wrapped.json()["predictions"]
    assert content_of(prediction) == content_of(raw.json()) == content_of(post(vertex, "/v1/chat/completions").json())
    for body in ({"instances": [BODY], "parameters": None}, {"parameters": {}, "instances": [BODY]}):
        assert post(vertex, PREDICT, body).status_code == 200
    long = {**BODY, "messages": chat("x" * 400), "metadata": {"k": "é" * 8000}}  # decoded in a thread
    assert post(vertex, PREDICT, {"instances": [long]}).status_code == 200


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/models", "/same"])
def test_a_health_route_on_the_path_of_a_conversation_opens_nothing_else(counting_folder: Path, route: str) -> None:
    variables = {"AIP_HEALTH_ROUTE": route, "AIP_PREDICT_ROUTE": "/same", "QWONNX_API_KEY": "secret"}
    platform = found("vertex", **variables)
    app = platform.application(ModelHost(lambda: pytest.fail("not loaded")), platform.settings(variables))
    health = ask(app, "GET", route)
    assert (health.status_code, health.json()) == (503, {"status": "loading"})
    for path in ("/same", "/v1/chat/completions"):
        assert ask(app, "POST", path, json=dict(BODY)).status_code == 401


def test_an_answer_streams(vertex: Served) -> None:
    check_stream(vertex, PREDICT)
    streamed = post(vertex, PREDICT, {"instances": [{**BODY, "stream": True}]})
    assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({"instances": []}, "instances"),
        ({"instances": [dict(BODY), dict(BODY)]}, "instances"),
        ({"instances": [dict(BODY)], "parameters": {"temperature": 1}}, "parameters"),
        ({"instances": [{**BODY, "temperature": "hot"}]}, "temperature"),
        ({**BODY, "temperature": "hot"}, "temperature"),
    ],
)
def test_a_wrong_body_is_refused_in_the_apis_form(vertex: Served, body: Any, parameter: str) -> None:
    answer = post(vertex, PREDICT, body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, parameter)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b'"instances"',
        b'{"instances": {}}',
        b'{"instances": null}',
        b'{"instances": [null]}',
        b'{"instances": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"[" * 40_000,
        json.dumps({"instances": [{"a": [[]] * 5000}]}).encode(),
    ],
)
def test_what_is_no_conversation_is_a_400(vertex: Served, content: bytes) -> None:
    with vertex.http() as client:
        answer = client.post(PREDICT, content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_a_body_over_the_limit_and_an_event_are_refused(vertex: Served) -> None:
    for body in ({**BODY, "messages": chat("x" * 100_000)}, {"instances": [{"x": "x" * 100_000}]}):
        answer = post(vertex, PREDICT, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    event = post(vertex, PREDICT, {"message": {}}, headers={"user-agent": "APIs-Google; (+https://developers)"})
    assert (event.status_code, event.json()["error"]["code"]) == (400, "invalid_event")
    assert "rawPredict" in event.json()["error"]["message"]
