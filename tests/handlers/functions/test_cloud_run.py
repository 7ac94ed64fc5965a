"""Cloud Run and Knative Serving: the command in a container with a PORT, from its first request to SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.handlers.cli.commands import running
from tests.handlers.functions.platforms import BODY, check_stream, check_too_large, post, serving_on
from tests.handlers.serving import Served

CHAT = "/v1/chat/completions"
KEY = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def knative(counting_folder: Path) -> Iterator[Served]:
    with serving_on("cloud-run", counting_folder, QWONNX_NO_KEY="1", QWONNX_MAX_BODY_BYTES="50kB") as served:
        yield served


@contextmanager
def container(artifact: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """`qwonnx serve` with nothing but variables, and a client for it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {"QWONNX_PLATFORM": "auto", "QWONNX_ARTIFACT": str(artifact), "K_SERVICE": "qwen", "PORT": str(port)}
    with running("serve", "--max-model-len", "2048", **given, QWONNX_API_KEY="secret", **environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == f"Platform: cloud-run (K_SERVICE=qwen, PORT={port}), listening on 0.0.0.0, port {port}\n"
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, headers=KEY) as client:
            yield process, client


def stream(client: httpx.Client, num_tokens: int) -> list[str]:
    body = {**BODY, "max_tokens": num_tokens, "stream": True}
    with client.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200
        return [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]


def test_the_one_request_that_wakes_a_container_is_answered_and_a_signal_ends_all_well(counting_folder: Path) -> None:
    with container(counting_folder, QWONNX_SHUTDOWN_SECONDS="0.5") as (process, client):
        first = client.post(CHAT, json=BODY)  # it listens before the model is loaded
        assert (first.status_code, first.json()["usage"]["completion_tokens"]) == (200, 4)
        assert client.post(CHAT, json=BODY, headers={"authorization": "Bearer no"}).status_code == 401
        with ThreadPoolExecutor(8) as pool:
            streams = [pool.submit(stream, client, 2000) for _ in range(6)]
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            signalled = time.monotonic()
            for future in streams:
                last = future.result()[-1]
                assert last == "[DONE]" or json.loads(last)["error"]["code"] == "server_closing"
        assert process.wait(10) == 0
        assert time.monotonic() - signalled < 9, "Cloud Run kills after ten seconds"


def test_answers_stream_and_errors_and_events_are_refused_in_the_apis_form(knative: Served) -> None:
    check_stream(knative, CHAT)
    check_too_large(knative, CHAT, 50_000)
    assert post(knative, CHAT, {**BODY, "temperature": "hot"}).json()["error"]["param"] == "temperature"
    for headers in (
        {"ce-specversion": "1.0", "ce-type": "google.cloud.pubsub.topic.v1.messagePublished"},
        {"content-type": "application/cloudevents+json"},
        {"user-agent": "APIs-Google; (+https://developers.google.com/webmasters/APIs-Google.html)"},
        {"x-goog-pubsub-message-id": "1"},
    ):
        event = post(knative, "/", {"message": {"data": ""}}, headers=headers)
        assert (event.status_code, event.json()["error"]["code"]) == (400, "invalid_event")
        assert "--platform cloudevents" in event.json()["error"]["message"]
