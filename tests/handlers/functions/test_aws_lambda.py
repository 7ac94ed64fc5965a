"""The handler under AWS's own runtime client, which fetches events from a local implementation of its API."""

from __future__ import annotations

import base64
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.serving import MODEL, chat

ROOT = Path(__file__).resolve().parents[3]
_API = "/2018-06-01/runtime"


@dataclass
class LambdaService:
    """Lambda's side of the runtime API: hands out events, takes answers."""

    events: queue.Queue[tuple[str, float, dict[str, Any]]] = field(default_factory=queue.Queue)  # name, seconds, event
    answers: queue.Queue[tuple[str, Any]] = field(default_factory=queue.Queue)  # ("response" or "error", document)
    count: int = 0

    def invoke(self, event: dict[str, Any], *, seconds: float = 900.0) -> dict[str, Any]:
        """The answer to an event; the function has this much time for it."""
        self.count += 1
        self.events.put((f"invocation-{self.count}", seconds, event))
        kind, answer = self.answers.get(timeout=40)
        assert kind == "response", answer
        assert isinstance(answer, dict)
        return answer


def _request_handler(service: LambdaService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == f"{_API}/invocation/next"
            name, seconds, event = service.events.get()
            body = json.dumps(event).encode()
            self.send_response(200)
            self.send_header("Lambda-Runtime-Aws-Request-Id", name)
            self.send_header("Lambda-Runtime-Deadline-Ms", str(int((time.time() + seconds) * 1000)))
            self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-north-1:1:function:qwonnx")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service.answers.put((self.path.rpartition("/")[2], document))
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def running(
    artifact: Path, *, handler: str = "qwonnx.handlers.functions.aws_lambda.handler", **environment: str
) -> Iterator[LambdaService]:
    """An instance of the function, as Lambda starts one."""
    service = LambdaService()
    with ThreadingHTTPServer(("127.0.0.1", 0), _request_handler(service)) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        variables = {
            **os.environ,
            "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_port}",
            "AWS_LAMBDA_FUNCTION_NAME": "qwonnx",
            "AWS_LAMBDA_FUNCTION_VERSION": "1",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "AWS_LAMBDA_LOG_GROUP_NAME": "group",
            "AWS_LAMBDA_LOG_STREAM_NAME": "stream",
            "QWONNX_ARTIFACT": str(artifact),
            "QWONNX_NUM_THREADS": "1",
            "QWONNX_MAX_MODEL_LEN": "512",
            **environment,
        }
        command = [sys.executable, "-m", "awslambdaric", handler]
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL)
        try:
            yield service
        finally:
            process.kill()
            process.wait()
            server.shutdown()


@pytest.fixture(scope="module")
def function(counting_folder: Path) -> Iterator[LambdaService]:
    with running(counting_folder) as service:
        yield service


def event(method: str, path: str, body: object = None, *, encoded: bool = False, url: bool = False) -> dict[str, Any]:
    """An API Gateway v2 event, or a function URL's, which has the same format with another domain."""
    domain = "abc.lambda-url.eu-north-1.on.aws" if url else "abc.execute-api.eu-north-1.amazonaws.com"
    document: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": domain, "content-type": "application/json", "x-forwarded-proto": "https"},
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "abc",
            "domainName": domain,
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "1.2.3.4", "userAgent": "t"},
            "requestId": "id",
            "stage": "$default",
            "time": "01/Jan/2026:00:00:00 +0000",
            "timeEpoch": 1767225600000,
        },
        "isBase64Encoded": encoded,
    }
    if body is not None:
        text = json.dumps(body)
        document["body"] = base64.b64encode(text.encode()).decode() if encoded else text
    return document


def json_of(answer: dict[str, Any], status: int = 200) -> Any:
    assert answer["statusCode"] == status, answer
    assert answer["headers"]["content-type"] == "application/json"
    assert answer["isBase64Encoded"] is False
    return json.loads(answer["body"])


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
    assert refusal({"Records": [{"eventSource": "aws:sqs"}]}, 400)["code"] == "invalid_event"
    undecodable = {**event("POST", "/v1/chat/completions"), "body": "a", "isBase64Encoded": True}
    assert refusal(undecodable, 400)["code"] == "invalid_event"
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


def test_a_rest_api_answers_in_any_stage(function: LambdaService) -> None:
    """Payload format 1.0, whose path has no stage."""
    request = {
        "resource": "/{proxy+}",
        "path": "/v1/models",
        "httpMethod": "GET",
        "headers": {"Host": "abc.execute-api.eu-north-1.amazonaws.com"},
        "multiValueHeaders": {"Host": ["abc.execute-api.eu-north-1.amazonaws.com"]},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "requestContext": {"stage": "v1", "path": "/v1/v1/models", "identity": {"sourceIp": "1.2.3.4"}},
        "body": None,
        "isBase64Encoded": False,
    }
    answer = function.invoke(request)
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])["data"][0]["id"] == MODEL


@pytest.fixture(scope="module")
def slow_function(counting_folder: Path) -> Iterator[LambdaService]:
    """A step takes 50 ms, and reads few tokens of a prompt."""
    environment = {"QWONNX_MAX_NUM_BATCHED_TOKENS": "16"}
    with running(counting_folder, handler="tests.handlers.functions.slow_function.handler", **environment) as service:
        json_of(service.invoke(event("GET", "/health/live")))  # its start is not measured
        yield service


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
    with running(tmp_path) as service:
        kind, document = service.answers.get(timeout=40)
    assert kind == "error"
    assert "manifest.json" in document["errorMessage"]
