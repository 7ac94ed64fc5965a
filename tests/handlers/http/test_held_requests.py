"""Requests that come while the model loads: some wait, and every one of them ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import SessionError
from tests.handlers.serving import MODEL, RUNTIME, Served, chat, serving, until

pytestmark = pytest.mark.fast

PATH = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Loading:
    """A server whose model loads until `go` is set."""

    served: Served
    go: threading.Event

    def post(self, timeout: float = 20.0, **fields: object) -> httpx.Response:
        body = {"model": MODEL, "messages": chat(), "max_tokens": 3, **fields}
        return httpx.post(f"{self.served.url}{PATH}", json=body, trust_env=False, timeout=timeout)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.served.url}{path}", trust_env=False, timeout=20)

    def holds(self, number: int) -> None:
        until(lambda: self.served.host.num_held == number)


@contextmanager
def loading(load: Callable[[], Engine], **settings: object) -> Iterator[Loading]:
    go = threading.Event()

    def wait_and_load() -> Engine:
        assert go.wait(20)
        return load()

    given = ServerSettings(shutdown_seconds=0.5, **settings)  # type: ignore[arg-type]
    with serving(wait_and_load, settings=given, ready=False) as served:
        try:
            yield Loading(served, go)
        finally:
            go.set()


@pytest.fixture
def load(counting_folder: Path) -> Callable[[], Engine]:
    return lambda: Engine.open(counting_folder, RUNTIME)


def test_as_many_as_may_wait_are_answered_and_the_next_one_is_told_to_come_again(load: Callable[[], Engine]) -> None:
    with loading(load, hold_while_loading=3) as server, ThreadPoolExecutor(3) as pool:
        held = [pool.submit(server.post), pool.submit(server.post, stream=True), pool.submit(server.get, "/v1/models")]
        server.holds(3)
        beyond = server.post()
        assert (beyond.status_code, beyond.headers["retry-after"]) == (429, "1")
        assert beyond.json()["error"]["message"].startswith("the model is loading, and 3 requests wait")
        assert server.post(temperature="hot").status_code == 400, "what cannot be answered does not wait"
        assert server.get("/health/ready").status_code == 503, "health checks do not wait, and say the truth"
        assert server.get("/health/live").status_code == 200
        server.go.set()
        answers = [future.result() for future in held]
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert answers[1].text.endswith("data: [DONE]\n\n")
        assert server.served.host.num_held == 0


def test_none_waits_if_none_may(load: Callable[[], Engine]) -> None:
    with loading(load, hold_while_loading=0) as server:
        refused = server.post()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert server.get("/v1/models").status_code == 503


def test_a_client_that_hangs_up_gives_its_place_back(load: Callable[[], Engine]) -> None:
    with loading(load, hold_while_loading=1) as server, ThreadPoolExecutor(1) as pool:
        with pytest.raises(httpx.ReadTimeout):
            server.post(timeout=0.2)
        server.holds(0)
        next_one = pool.submit(server.post)
        server.holds(1)
        server.go.set()
        assert next_one.result().status_code == 200


def test_loading_that_fails_answers_all_that_wait() -> None:
    def fail() -> Engine:
        raise SessionError("cannot load /secret/folder")

    with loading(fail) as server, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(server.post) for _ in range(2)]
        server.holds(2)
        server.go.set()
        for future in held:
            answer = future.result()
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
            assert "/secret" not in answer.text


def test_a_server_that_stops_answers_all_that_wait(load: Callable[[], Engine]) -> None:
    with loading(load) as server, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(server.post) for _ in range(2)]
        server.holds(2)
        server.served.server.should_exit = True
        answers = [future.result() for future in held]
        assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [
            (503, "server_closing")
        ] * 2


def test_the_time_of_an_answer_counts_from_when_its_request_came(load: Callable[[], Engine]) -> None:
    with loading(load, max_answer_seconds=0.3) as server:
        late = server.post()
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        server.holds(0)
