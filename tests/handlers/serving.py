"""A real uvicorn server on a free loopback port, in a thread of the test's process, and clients for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
from starlette.types import ASGIApp

from qwonnx.handlers.app import create_app
from qwonnx.handlers.http.listener import bind, url_of
from qwonnx.handlers.model_host import HostStatus, ModelHost
from qwonnx.handlers.server import Server
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput
from qwonnx.runtime.settings import RuntimeSettings

MODEL = "counting-model"  # the checkpoint's name in a counting model's manifest
RUNTIME = RuntimeSettings(num_threads=1, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=512, spin=False)
DEADLINE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    url: str
    host: ModelHost
    server: Server

    @property
    def engine(self) -> Engine:
        return self.host.ready_engine()

    def client(self, api_key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE_SECONDS, trust_env=False)


@contextmanager
def serving(
    artifact: Path | Callable[[], Engine],
    *,
    runtime: RuntimeSettings = RUNTIME,
    settings: ServerSettings | None = None,
    ready: bool = True,
    make_app: Callable[[ModelHost, ServerSettings], ASGIApp] = create_app,
) -> Iterator[Served]:
    """Serve an artifact. `artifact` may also be a function that opens the engine."""
    load = artifact if callable(artifact) else (lambda: Engine.open(artifact, runtime))
    settings = settings or ServerSettings(shutdown_seconds=0.5)
    host = ModelHost(
        load,
        model_names=settings.model_names,
        any_model_name=settings.any_model_name,
        on_failure=lambda error: None,
    )
    server = Server(host, settings, make_app=make_app)
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        until(lambda: server.started)
        if ready:
            until(lambda: host.status is not HostStatus.LOADING)
            assert host.error is None, host.error
        yield Served(url_of(listener), host, server)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def paced(engine: Engine, seconds: float = 0.02) -> Iterator[list[float]]:
    """Make every step take at least this long, as with a real model, and record when each one began."""
    step, began = engine.step, []

    def slow_step() -> list[RequestOutput]:
        began.append(time.monotonic())
        time.sleep(seconds)
        return step()

    engine.step = slow_step  # type: ignore[method-assign]
    try:
        yield began
    finally:
        engine.step = step  # type: ignore[method-assign]


def until(holds: Callable[[], bool], seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until a condition holds, polling often."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def chat(text: str = "Hello") -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]
