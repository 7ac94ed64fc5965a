"""Azure Functions: the app as the worker calls it, and the server as a custom handler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.handlers.functions.platforms import BODY, check_stream, check_too_large, content_of, get, post, serving_on
from tests.handlers.serving import Served, chat

pytestmark = pytest.mark.fast

ROOT = Path(__file__).resolve().parents[3]
HOST = "https://qwen.azurewebsites.net"
CHAT = "/api/v1/chat/completions"
JSON = {"content-type": "application/json"}
INVOCATION = {"x-azure-functions-invocationid": "1c0b", "x-azure-functions-hostversion": "4.0"}


@pytest.fixture(scope="module")
def custom_handler(counting_folder: Path) -> Iterator[Served]:
    with serving_on("azure", counting_folder, QWONNX_MAX_BODY_BYTES="50kB") as served:
        yield served


def called(folder: Path, requests: list[tuple[str, str, dict[str, str], str]]) -> list[tuple[int, Any, str]]:
    """The answers of a worker: status, headers, body."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "QWONNX_ARTIFACT": str(folder),
        "QWONNX_NUM_THREADS": "1",
        "QWONNX_MAX_MODEL_LEN": "512",
        "QWONNX_MAX_BODY_BYTES": "50kB",
    }
    command = [sys.executable, "-m", "tests.handlers.functions.azure_worker"]
    run = subprocess.run(
        command, input=json.dumps(requests), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (run.returncode, "Traceback" in run.stderr) == (0, False), run.stderr
    return [tuple(json.loads(line)) for line in run.stdout.splitlines()]


def test_the_worker_gets_whole_answers_and_errors_in_the_apis_form(counting_folder: Path) -> None:
    requests = [
        ("POST", f"{HOST}{CHAT}", JSON, json.dumps(BODY)),
        ("POST", f"{HOST}/v1/chat/completions", JSON, json.dumps({**BODY, "stream": True})),
        ("POST", f"{HOST}{CHAT}", JSON, json.dumps({**BODY, "temperature": "hot"})),
        ("POST", f"{HOST}{CHAT}", JSON, json.dumps({**BODY, "messages": chat("x" * 50_000)})),
        ("POST", f"{HOST}/api/events", {**JSON, "aeg-event-type": "Notification"}, "[]"),
        ("GET", f"{HOST}/api/health/live", {}, ""),
        ("GET", f"{HOST}/api/nothing", {}, ""),
    ]
    whole, streamed, wrong, large, event, live, unknown = called(counting_folder, requests)
    assert (whole[0], whole[1]["content-type"]) == (200, "application/json")
    assert json.loads(whole[2])["usage"]["completion_tokens"] == 4
    assert (streamed[0], streamed[2].endswith("data: [DONE]\n\n")) == (200, True)
    assert streamed[2].count("data: ") > 4, "a stream is one body"
    assert (wrong[0], json.loads(wrong[2])["error"]["param"]) == (400, "temperature")
    assert (large[0], json.loads(large[2])["error"]["code"]) == (413, "body_too_large")
    assert (event[0], json.loads(event[2])["error"]["code"]) == (400, "invalid_event")
    assert "an HTTP trigger" in event[2]
    assert (live[0], json.loads(live[2])) == (200, {"status": "live"})
    assert (unknown[0], json.loads(unknown[2])["error"]["code"]) == (404, "route_not_found")


def test_a_custom_handler_streams_and_takes_the_hosts_route_prefix(custom_handler: Served) -> None:
    answer = post(custom_handler, CHAT, headers=INVOCATION)
    assert (answer.status_code, content_of(answer.json())) == (
        200,
        content_of(post(custom_handler, "/v1/chat/completions").json()),
    )
    check_stream(custom_handler, CHAT)
    check_too_large(custom_handler, CHAT, 50_000)
    assert post(custom_handler, CHAT, {**BODY, "temperature": "hot"}).json()["error"]["param"] == "temperature"
    assert get(custom_handler, "/api/health/ready").status_code == 200


def test_an_invocation_of_another_trigger_is_refused_with_what_to_set(custom_handler: Served) -> None:
    invocation = {"Data": {"req": {"Url": f"{HOST}{CHAT}", "Method": "POST"}}, "Metadata": {}}
    for path in ("/Chat", "/QueueTrigger", "/"):
        answer = post(custom_handler, path, invocation, headers=INVOCATION)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_event")
        assert "enableForwardingHttpRequest" in answer.json()["error"]["message"]
    assert post(custom_handler, "/Chat", invocation).status_code == 404
