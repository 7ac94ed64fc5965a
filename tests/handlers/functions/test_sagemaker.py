"""SageMaker's two routes, and the same requests to the reference of its containers' conventions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwonnx.handlers.model_host import ModelHost
from qwonnx.runtime.engine.engine import Engine
from tests.handlers.fakes import ask
from tests.handlers.functions.platforms import (
    BODY,
    check_stream,
    check_too_large,
    content_of,
    found,
    get,
    post,
    serving_on,
)
from tests.handlers.serving import RUNTIME, Served

pytestmark = pytest.mark.fast

SESSION = "X-Amzn-SageMaker-Session-Id"
ADAPTER = "X-Amzn-SageMaker-Adapter-Identifier"

# What the reference answers to requests, in a process of its own: it imports FastAPI, and its handlers are global.
_REFERENCE = """
import json, sys
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.responses import JSONResponse
from model_hosting_container_standards import sagemaker
app = FastAPI()

@app.get("/ping")
@sagemaker.register_ping_handler
async def ping():
    return JSONResponse({})

@app.post("/invocations")
@sagemaker.register_invocation_handler
@sagemaker.stateful_session_manager()
@sagemaker.inject_adapter_id("model", append=True, separator=":")
async def invoke(raw_request: Request):
    body = await raw_request.json()
    if body["model"] != "counting-model":
        return JSONResponse({"error": body["model"]}, 404)
    return JSONResponse({})

sagemaker.bootstrap(app)
client = TestClient(app)
for method, path, headers, body in json.load(sys.stdin):
    answer = client.request(method, path, headers=headers, content=body)
    print("STATUS", answer.status_code)
"""


@pytest.fixture(scope="module")
def sagemaker(counting_folder: Path) -> Iterator[Served]:
    with serving_on("sagemaker", counting_folder) as served:
        yield served


def test_a_ping_is_answered_once_the_model_is_ready(sagemaker: Served, counting_folder: Path) -> None:
    assert get(sagemaker, "/ping").status_code == 200
    may_load = threading.Event()

    def load() -> Engine:
        may_load.wait()
        return Engine.open(counting_folder, RUNTIME)

    host = ModelHost(load)
    host.start()
    platform = found("sagemaker")
    assert ask(platform.application(host, platform.settings({})), "GET", "/ping").status_code == 503
    may_load.set()
    host.wait()
    host.close()


def test_an_invocation_is_a_conversation(sagemaker: Served) -> None:
    answer = post(sagemaker, "/invocations")
    assert answer.status_code == 200
    plain = post(sagemaker, "/v1/chat/completions")
    assert content_of(answer.json()) == content_of(plain.json())
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "trace=1", "X-Amzn-SageMaker-Inference-Id": "7"}
    assert content_of(post(sagemaker, "/invocations", headers=headers).json()) == content_of(plain.json())


def test_an_invocation_streams(sagemaker: Served) -> None:
    check_stream(sagemaker, "/invocations")


def test_a_serverless_endpoints_limit_is_the_bodys(sagemaker: Served) -> None:
    check_too_large(sagemaker, "/invocations", 4 << 20)


def test_errors_have_the_apis_form(sagemaker: Served) -> None:
    for body, status in ((b"{", 400), (b"[]", 400), (b'{"requestType":"NEW_SESSION"}', 400), (b"\xff", 400)):
        with sagemaker.http() as client:
            answer = client.post("/invocations", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
    with sagemaker.http() as client:
        assert client.post("/invocations", content=b"a,b", headers={"content-type": "text/csv"}).status_code == 415
        assert client.get("/invocations").status_code == 405
        assert client.post("/invocations/x").status_code == 404


@pytest.mark.parametrize("headers", [{"x-amz-sns-message-type": "Notification"}, {"ce-specversion": "1.0"}])
def test_an_event_of_another_service_is_refused_with_the_trigger(sagemaker: Served, headers: dict[str, str]) -> None:
    answer = post(sagemaker, "/invocations", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_event")
    assert "InvokeEndpoint" in answer.json()["error"]["message"]


def test_the_reference_takes_and_refuses_the_same_requests(sagemaker: Served) -> None:
    body = json.dumps(BODY)
    json_type = {"content-type": "application/json"}
    requests: list[tuple[str, str, dict[str, str], str]] = [
        ("GET", "/ping", {}, ""),
        ("POST", "/ping", {}, ""),
        ("POST", "/invocations", json_type, body),
        ("GET", "/invocations", {}, ""),
        ("POST", "/invocations", json_type, "{"),
        ("POST", "/invocations", json_type, '{"requestType": "NEW_SESSION"}'),
        ("POST", "/invocations", json_type, '{"requestType": "CLOSE"}'),
        ("POST", "/invocations", {**json_type, SESSION: "abc"}, body),
        ("POST", "/invocations", {**json_type, ADAPTER: "lora-1"}, body),
        ("GET", "/adapters", {}, ""),
    ]
    run = subprocess.run(
        [sys.executable, "-c", _REFERENCE], input=json.dumps(requests), capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    reference = [int(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("STATUS ")]
    ours: list[Any] = []
    with sagemaker.http() as client:
        for method, path, headers, content in requests:
            ours.append(client.request(method, path, headers=headers, content=content).status_code)
    assert ours == reference
