"""The handler under Google's own framework, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.handlers.functions.platforms import BODY
from tests.handlers.serving import chat, until

ROOT = Path(__file__).resolve().parents[3]
MAIN = Path(__file__).resolve().parent / "google_main.py"
CHAT = "/v1/chat/completions"
KEY = {"authorization": "Bearer secret"}


@contextmanager
def framework(artifact: Path, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """`functions-framework --asgi`, and a client for it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = "from functions_framework._cli import _cli; _cli()"
    options = ["--target", "handler", "--source", str(MAIN), "--asgi", "--host", "127.0.0.1", "--port", str(port)]
    given = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "QWONNX_ARTIFACT": str(artifact),
        "QWONNX_NUM_THREADS": "1",
        "QWONNX_MAX_MODEL_LEN": "1024",
        "QWONNX_API_KEY": "secret",
        **environment,
    }
    with subprocess.Popen([sys.executable, "-c", program, *options], env=given) as process:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False, headers=KEY)
        try:
            until(lambda: process.poll() is not None or _listens(port), seconds=300)
            assert process.poll() is None
            yield process, client
        finally:
            client.close()
            process.terminate()
            process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stream(client: httpx.Client, num_tokens: int) -> list[tuple[float, str]]:
    """The events of an answer, and when each came."""
    body = {**BODY, "max_tokens": num_tokens, "stream": True}
    with client.stream("POST", CHAT, json=body) as answer:
        assert answer.status_code == 200
        return [(time.monotonic(), line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]


def test_the_function_answers_as_the_server_and_ends_all_answers_after_a_signal(counting_folder: Path) -> None:
    with framework(counting_folder, QWONNX_MAX_BODY_BYTES="50kB", QWONNX_SHUTDOWN_SECONDS="1") as (process, client):
        # The first request comes while the model loads, and waits for it.
        answer = client.post(CHAT, json=BODY)
        assert (answer.status_code, answer.json()["usage"]["completion_tokens"]) == (200, 4)
        assert client.get("/health/ready").json() == {"status": "ready"}

        began = time.monotonic()
        events = stream(client, 50)
        assert events[-1][1] == "[DONE]"
        assert events[0][0] - began < 0.5 * (events[-1][0] - began), "the first event came with the last one"

        refused = client.post(CHAT, json={**BODY, "temperature": "hot"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")
        large = client.post(CHAT, json={**BODY, "messages": chat("x" * 50_000)})
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")
        event = client.post("/", json={}, headers={"ce-specversion": "1.0", "ce-type": "google.cloud.storage"})
        assert (event.status_code, event.json()["error"]["code"]) == (400, "invalid_event")
        assert "an HTTP trigger" in event.json()["error"]["message"]
        assert client.post(CHAT, json=BODY, headers={"authorization": "Bearer no"}).status_code == 401

        with ThreadPoolExecutor(5) as pool:
            long = [pool.submit(stream, client, 900) for _ in range(2)]
            whole = pool.submit(client.post, CHAT, json={**BODY, "max_tokens": 900})
            short = pool.submit(stream, client, 20)
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            signalled = time.monotonic()
            assert short.result()[-1][1] == "[DONE]", "an answer that is short ends whole"
            for future in long:
                assert json.loads(future.result()[-1][1])["error"]["code"] == "server_closing"
            assert (whole.result().status_code, whole.result().json()["error"]["code"]) == (503, "server_closing")
            assert time.monotonic() - signalled < 10
        assert process.wait(10) == 0


def test_a_function_whose_model_cannot_be_loaded_ends(tmp_path: Path) -> None:
    with framework(tmp_path) as (process, client):
        answer = client.post(CHAT, json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
        assert process.wait(20) == 3


def test_a_function_without_a_key_says_so_before_it_listens(counting_folder: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "QWONNX_API_KEY"},
        "QWONNX_ARTIFACT": str(counting_folder),
    }
    program = "import qwonnx.handlers.functions.google_functions"
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert "SettingsError: on cloud-run" in run.stderr
