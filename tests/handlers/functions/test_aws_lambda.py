"""The handler under AWS's own runtime client, which fetches events from a local implementation of its API."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.functions.lambda_service import (
    AMAZONS,
    LambdaService,
    balancer_event,
    event,
    json_of,
    rest_event,
    running,
)
from tests.handlers.serving import MODEL, chat

HANDLER = [*AMAZONS, "qwonnx.handlers.functions.aws_lambda.handler"]
SLOW = [*AMAZONS, "tests.handlers.functions.slow_function.handler"]


@pytest.fixture(scope="module")
def function(counting_folder: Path) -> Iterator[LambdaService]:
    with running(counting_folder, HANDLER) as instance:
        yield instance.service


@pytest.mark.parametrize("url", [False, True], ids=["api-gateway", "function-url"])
def test_models_health_and_completions_are_answered(function: LambdaService, url: bool) -> None:
    models = json_of(function.invoke(event("GET", "/v1/models", url=url)))
    assert [model["id"] for model in models["data"]] == [MODEL]
    assert json_of(function.invoke(event("GET", "/health/ready", url=url))) == {"status": "ready"}
    request = {"model": MODEL, "messages": chat(), "max_tokens": 5}
    plain = json_of(function.invoke(event("POST", "/v1/chat/completions", request, url=url)))
    encoded = json_of(function.invoke(event("POST", "/v1/chat/completions", request, encoded=True, url=url)))
    assert plain["usage"]["completion_tokens"] == 5
    assert plain["choices"] == encoded["choices"]


def test_a_stream_is_answered_in_one_body(function: LambdaService) -> None:
    request = {"model": MODEL, "messages": chat(), "max_tokens": 5, "stream": True}
    answer = function.invoke(event("POST", "/v1/chat/completions", request))
    assert answer["statusCode"] == 200
    assert answer["headers"]["content-type"].startswith("text/event-stream")
    lines = answer["body"].split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    whole = json_of(function.invoke(event("POST", "/v1/chat/completions", {**request, "stream": False})))
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in lines[:-2]]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]


def test_bad_requests_and_bad_events_are_answered_and_the_instance_lives_on(function: LambdaService) -> None:
    def refusal(request: dict[str, Any], status: int) -> Any:
        return json_of(function.invoke(request), status)["error"]

    wrong = {"model": MODEL, "messages": chat(), "temperature": "hot"}
    assert refusal(event("POST", "/v1/chat/completions", wrong), 400)["param"] == "temperature"
    assert refusal(event("GET", "/v2/nothing"), 404)["code"] == "route_not_found"
    assert refusal(event("GET", "/v1/chat/completions"), 405)["code"] == "method_not_allowed"
    undecodable = {**event("POST", "/v1/chat/completions"), "body": "a", "isBase64Encoded": True}
    assert refusal(undecodable, 400)["code"] == "invalid_event"
    assert refusal({**event("GET", "/v1/models"), "rawPath": None}, 400)["param"] == "rawPath"
    large = {**balancer_event("POST", "/v1/chat/completions"), "body": "x" * ((1 << 20) + 1)}
    assert refusal(large, 413)["code"] == "body_too_large"
    queued = function.begin({"Records": [{"eventSource": "aws:sqs"}]}).result()
    assert queued.kind == "error"  # the queue keeps its message
    assert queued.document["errorType"] == "UnknownEventError"
    assert "aws:sqs" in queued.document["errorMessage"]
    assert "check the function's trigger" in queued.document["errorMessage"]
    assert json_of(function.invoke(event("GET", "/health/live"))) == {"status": "live"}


@pytest.mark.parametrize(
    "warming",
    [
        {"warmer": True, "concurrency": 3},
        {"version": "0", "detail-type": "Scheduled Event", "source": "aws.events", "detail": {}, "resources": []},
        {"source": "aws.scheduler"},
        {"source": "serverless-plugin-warmup"},
    ],
)
def test_an_event_that_keeps_an_instance_warm_is_answered(function: LambdaService, warming: dict[str, Any]) -> None:
    assert json_of(function.invoke(warming)) == {"status": "ready"}


@pytest.mark.parametrize(
    ("stage", "path"),
    [("prod", "/prod/v1/models"), ("prod", "/v1/models"), ("v1", "/v1/v1/models"), ("v1", "/v1/models")],
)
def test_a_named_stage_is_not_part_of_the_path(function: LambdaService, stage: str, path: str) -> None:
    staged = event("GET", path)
    staged["requestContext"]["stage"] = stage
    assert json_of(function.invoke(staged))["data"][0]["id"] == MODEL


@pytest.mark.parametrize("multi_value", [False, True])
def test_a_load_balancer_gets_a_status_line(function: LambdaService, multi_value: bool) -> None:
    answer = function.invoke(balancer_event("GET", "/v1/models", multi_value=multi_value))
    assert answer["statusDescription"] == "200 OK"
    assert ("multiValueHeaders" in answer, "headers" in answer) == (multi_value, not multi_value)
    assert json_of(answer)["data"][0]["id"] == MODEL
    request = {"model": MODEL, "messages": chat(), "max_tokens": 5}
    completion = json_of(function.invoke(balancer_event("POST", "/v1/chat/completions", request)))
    assert completion["usage"]["completion_tokens"] == 5


def test_a_rest_api_answers_in_any_stage(function: LambdaService) -> None:
    assert json_of(function.invoke(rest_event("GET", "/v1/models")))["data"][0]["id"] == MODEL
    request = {"model": MODEL, "messages": chat(), "max_tokens": 5}
    answer = function.invoke(rest_event("POST", "/v1/chat/completions", request, encoded=True))
    assert json_of(answer)["usage"]["completion_tokens"] == 5


@pytest.fixture(scope="module")
def slow_function(counting_folder: Path) -> Iterator[LambdaService]:
    """A step takes 50 ms, and reads few tokens of a prompt."""
    with running(counting_folder, SLOW, QWONNX_MAX_NUM_BATCHED_TOKENS="16") as instance:
        json_of(instance.service.invoke(event("GET", "/health/live")))  # its start is not measured
        yield instance.service


def test_an_answer_ends_before_its_invocation_does(slow_function: LambdaService) -> None:
    request = {"model": MODEL, "messages": chat(""), "max_tokens": 400}
    for stream in (False, True):
        completion_event = event("POST", "/v1/chat/completions", {**request, "stream": stream})
        started = time.monotonic()
        answer = slow_function.invoke(completion_event, seconds=3)
        assert 1.5 < time.monotonic() - started < 3
        assert answer["statusCode"] == 200
        if stream:
            *events, done, end = answer["body"].split("\n\n")
            assert (done, end) == ("data: [DONE]", "")
            choices = [json.loads(text.removeprefix("data: "))["choices"][0] for text in events]
            content, reason = (
                "".join(choice["delta"].get("content", "") for choice in choices),
                choices[-1]["finish_reason"],
            )
        else:
            document = json_of(answer)
            content, reason = document["choices"][0]["message"]["content"], document["choices"][0]["finish_reason"]
            assert document["usage"]["completion_tokens"] == len(content)
        assert reason == "length"
        assert 5 < len(content) < 2 / 0.05


def test_an_answer_that_cannot_begin_in_time_is_a_504_and_the_instance_lives_on(slow_function: LambdaService) -> None:
    request = {"model": MODEL, "messages": chat("x" * 400), "max_tokens": 4}
    for stream in (False, True):
        completion_event = event("POST", "/v1/chat/completions", {**request, "stream": stream})
        started = time.monotonic()
        error = json_of(slow_function.invoke(completion_event, seconds=1), 504)["error"]
        assert time.monotonic() - started < 1
        assert (error["type"], error["code"]) == ("server_error", "deadline_exceeded")
    short = {**request, "messages": chat("")}
    completion = json_of(slow_function.invoke(event("POST", "/v1/chat/completions", short)))
    assert completion["usage"]["completion_tokens"] == 4


def test_a_missing_artifact_is_a_failed_initialisation_with_one_clear_message(tmp_path: Path) -> None:
    with running(tmp_path, HANDLER) as instance:
        kind, document = instance.service.errors.get(timeout=40)
    assert kind == "init"
    assert "manifest.json" in document["errorMessage"]
