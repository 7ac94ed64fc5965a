"""Clients that disconnect, servers that start, stop and fail: no generation runs without a client, no client hangs."""

from __future__ import annotations

import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from qwonnx.handlers.model_host import HostStatus
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput
from tests.handlers.serving import MODEL, RUNTIME, Served, chat, paced, serving, until

PATH = "/v1/chat/completions"


@pytest.fixture
def aborts(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of aborted requests, in order."""
    seen: list[str] = []
    abort = served.engine.abort

    def recorded(request_id: str) -> None:
        seen.append(request_id)
        abort(request_id)

    monkeypatch.setattr(served.engine, "abort", recorded)
    return seen


def test_a_client_that_leaves_a_stream_ends_its_generation_within_a_step(served: Served, aborts: list[str]) -> None:
    with paced(served.engine) as steps, served.client() as client:
        stream = client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=400, stream=True)
        for _ in range(4):
            next(stream)
        stream.close()
        left = time.monotonic()
        until(lambda: served.engine.num_live_requests == 0)
        # The step that runs when the abort arrives, and the step that handles it.
        assert len([began for began in steps if began > left + 0.1]) <= 2
    assert len(aborts) == 1


def test_a_client_that_leaves_a_whole_answer_ends_its_generation(served: Served, aborts: list[str]) -> None:
    request = {"model": MODEL, "messages": chat(), "max_tokens": 400}
    with paced(served.engine), served.http() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post(PATH, json=request, timeout=0.3)
        until(lambda: served.engine.num_live_requests == 0, seconds=2)
    assert len(aborts) == 1


def test_an_answer_that_ends_by_itself_is_never_aborted(served: Served, aborts: list[str]) -> None:
    with served.client() as client:
        client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=4)
        list(client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=4, stream=True))
    assert aborts == []


def test_one_who_leaves_does_not_disturb_the_others(served: Served) -> None:
    def ask() -> str | None:
        completion = client.chat.completions.create(model=MODEL, messages=chat("Stay"), max_tokens=40)
        return completion.choices[0].message.content

    with served.client() as client, ThreadPoolExecutor(2) as pool:
        alone = ask()
        with paced(served.engine, 0.005):
            staying = [pool.submit(ask) for _ in range(2)]
            stream = client.chat.completions.create(model=MODEL, messages=chat("Go"), max_tokens=400, stream=True)
            next(stream)
            stream.close()
            assert [answer.result() for answer in staying] == [alone, alone]


def test_health_answers_while_the_model_loads_and_is_ready_after_the_warm_up(counting_folder: Path) -> None:
    may_load = threading.Event()

    def load() -> Engine:
        may_load.wait()
        return Engine.open(counting_folder, RUNTIME)

    settings = ServerSettings(shutdown_seconds=0.5, hold_while_loading=0)
    with serving(load, settings=settings, ready=False) as served, served.http() as client:
        try:
            assert client.get("/health/live").status_code == 200
            answer = client.get("/health/ready")
            assert (answer.status_code, answer.json()) == (503, {"status": "loading"})
            refused = client.post(PATH, json={"model": MODEL, "messages": chat()})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_ready")
            assert client.get("/v1/models").status_code == 503
        finally:
            may_load.set()
        until(lambda: client.get("/health/ready").status_code == 200)
        assert served.engine.is_ready


def test_a_model_that_cannot_be_loaded_is_never_ready(tmp_path: Path) -> None:
    with serving(tmp_path, ready=False) as served, served.http() as client:
        until(lambda: served.host.status is HostStatus.FAILED)
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "failed"})
        assert client.get("/health/live").status_code == 200
        refused = client.get("/v1/models")
        assert refused.status_code == 503
        assert str(tmp_path) not in refused.text


def test_a_server_that_stops_lets_short_answers_end_and_tells_long_ones(counting_folder: Path) -> None:
    settings = ServerSettings(shutdown_seconds=0.6)
    with serving(counting_folder, settings=settings) as served, served.client() as client, paced(served.engine):
        long = client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=400, stream=True)
        with ThreadPoolExecutor(1) as pool:
            request = {"model": MODEL, "messages": chat(), "max_tokens": 400}
            whole = pool.submit(lambda: httpx.post(f"{served.url}{PATH}", json=request, trust_env=False, timeout=20))
            until(lambda: served.engine.num_live_requests == 2)
            short = client.chat.completions.create(model=MODEL, messages=chat(), max_tokens=8, stream=True)
            next(short), next(long)
            served.server.should_exit = True
            assert [chunk.choices[0].finish_reason for chunk in short][-1] == "length"
            with pytest.raises(openai.APIError) as cut:
                list(long)
            assert cut.value.code == "server_closing"
            assert whole.result().status_code == 503
            assert whole.result().json()["error"]["code"] == "server_closing"
        until(lambda: served.host.status is HostStatus.CLOSING)


def test_every_answer_has_an_id_and_every_request_one_line_of_log_without_content(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "the-text-of-the-message"
    with caplog.at_level(logging.INFO), served.http() as client:
        headers = {"x-request-id": "mine-1", "authorization": "Bearer hunter2"}
        request = {"model": MODEL, "messages": chat(secret), "max_tokens": 2}
        assert client.post(f"{PATH}?q=hunter2", json=request, headers=headers).headers["x-request-id"] == "mine-1"
        made_up = client.get("/health/live", headers={"x-request-id": "a b"}).headers["x-request-id"]
        assert made_up not in ("", "a b")
        client.get("/forged%0Aline")
    lines = [record.getMessage() for record in caplog.records if record.name == "qwonnx.access"]
    assert [line.split()[:3] for line in lines] == [
        ["POST", PATH, "200"],
        ["GET", "/health/live", "200"],
        ["GET", "/forged%0Aline", "404"],
    ]
    assert lines[0].endswith(" mine-1")
    ours = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("qwonnx"))
    assert secret not in ours
    assert "hunter2" not in ours


def test_a_fault_of_ours_is_a_500_without_a_traceback(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: object, **keywords: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(served.engine, "submit", broken)
    with served.http() as client:
        answer = client.post(PATH, json={"model": MODEL, "messages": chat(), "max_tokens": 2})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "inside" not in answer.text
    assert "ZeroDivisionError: inside" in caplog.text


def test_streams_are_events_that_no_proxy_keeps_back(served: Served) -> None:
    request = {"model": MODEL, "messages": chat(), "max_tokens": 3, "stream": True}
    with served.http() as client, client.stream("POST", PATH, json=request) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "no-cache" in answer.headers["cache-control"]
        assert answer.headers["x-accel-buffering"] == "no"
        lines = list(answer.iter_lines())
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line == "" or line.startswith("data: ") for line in lines)
    assert all(json.loads(line[6:])["object"] == "chat.completion.chunk" for line in lines[:-2] if line)


def test_an_engine_that_stops_because_of_a_fault_makes_the_server_unready(
    counting_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> list[RequestOutput]:
        raise ZeroDivisionError("inside")

    with serving(counting_folder) as served, served.http() as client:
        served.engine.step = broken  # type: ignore[method-assign]
        answer = client.post(PATH, json={"model": MODEL, "messages": chat(), "max_tokens": 2})
        assert answer.status_code == 500
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "failed"})
        assert client.post(PATH, json={"model": MODEL, "messages": chat()}).status_code == 503
    assert "ZeroDivisionError: inside" in caplog.text
