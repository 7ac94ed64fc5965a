"""Answers that exceed their deadline, on a server: they end unfinished, or with an error if they had not begun."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.types import Receive, Scope, Send

from qwonnx.handlers.http import deadline
from qwonnx.handlers.http.deadline import InvocationDeadline
from qwonnx.handlers.settings import ServerSettings
from tests.handlers.serving import MODEL, RUNTIME, Served, chat, paced, serving, until

SECONDS = 1.0


@pytest.fixture(scope="module")
def hurried(counting_folder: Path) -> Iterator[Served]:
    """A server that gives an answer one second, and reads prompts slowly."""
    settings = ServerSettings(max_answer_seconds=SECONDS, shutdown_seconds=0.5)
    runtime = dataclasses.replace(RUNTIME, max_num_batched_tokens=8)
    with serving(counting_folder, runtime=runtime, settings=settings) as served, paced(served.engine, 0.03):
        yield served


def test_an_answer_ends_as_it_is_when_its_time_is_over(hurried: Served) -> None:
    with hurried.client() as client:
        started = time.monotonic()
        completion = client.chat.completions.create(model=MODEL, messages=chat(""), max_tokens=400)
        assert SECONDS <= time.monotonic() - started < SECONDS + 1
        assert completion.choices[0].finish_reason == "length"
        assert completion.usage is not None
        assert 0 < completion.usage.completion_tokens == len(completion.choices[0].message.content or "") < 400

        chunks = list(client.chat.completions.create(model=MODEL, messages=chat(""), max_tokens=400, stream=True))
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
        assert any(chunk.choices[0].delta.content for chunk in chunks)
    until(lambda: hurried.engine.num_live_requests == 0)


def test_an_answer_that_did_not_begin_is_a_504_or_an_error_event(hurried: Served) -> None:
    with hurried.client() as client:
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model=MODEL, messages=chat("x" * 450), max_tokens=4)
        assert (refused.value.status_code, refused.value.code) == (504, "deadline_exceeded")
        assert refused.value.response.headers["x-should-retry"] == "false"  # the client would retry, in vain
        with pytest.raises(openai.APIError) as cut:
            list(client.chat.completions.create(model=MODEL, messages=chat("x" * 450), max_tokens=4, stream=True))
        assert cut.value.code == "deadline_exceeded"
    until(lambda: hurried.engine.num_live_requests == 0)


def test_an_answer_that_ends_in_time_is_whole(hurried: Served) -> None:
    with hurried.client() as client:
        completion = client.chat.completions.create(model=MODEL, messages=chat(""), max_tokens=3)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3


class Deadlines:
    """An application that notes its deadlines, in seconds from now."""

    def __init__(self, **settings: Any) -> None:
        self._settings = ServerSettings(**settings)
        self.of_invocation: float | None = None
        self.of_request: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        now = asyncio.get_running_loop().time()
        invocation, request = deadline.of_invocation(scope), deadline.of_request(scope, self._settings)
        self.of_invocation = None if invocation is None else invocation - now
        self.of_request = None if request is None else request - now

    def after(self, remaining_seconds: float | None) -> Deadlines:
        middleware = InvocationDeadline(self, lambda scope: remaining_seconds)
        asyncio.run(middleware({"type": "http"}, None, None))  # type: ignore[arg-type]
        return self


@pytest.mark.parametrize(
    ("remaining", "expected"),
    [(900.0, 899.0), (2.0, 1.0), (1.0, 0.5), (0.0, 0.0), (-3.0, 0.0)],
    ids=["long", "a margin", "half of little", "none", "over"],
)
def test_an_invocation_ends_a_margin_early_whatever_platform_it_is_of(remaining: float, expected: float) -> None:
    found = Deadlines().after(remaining)
    assert found.of_invocation == pytest.approx(expected, abs=0.05)
    assert found.of_request == found.of_invocation


def test_without_an_invocation_or_one_that_tells_its_time_there_is_none() -> None:
    found = Deadlines().after(None)
    assert (found.of_invocation, found.of_request) == (None, None)
    asyncio.run(found({"type": "http"}, None, None))  # type: ignore[arg-type]
    assert (found.of_invocation, found.of_request) == (None, None)


@pytest.mark.parametrize(("remaining", "expected"), [(None, 29.0), (900.0, 29.0), (10.0, 9.0)])
def test_the_earlier_of_invocation_and_limit_counts(remaining: float | None, expected: float) -> None:
    found = Deadlines(max_answer_seconds=29.0).after(remaining)
    assert found.of_request == pytest.approx(expected, abs=0.05)
