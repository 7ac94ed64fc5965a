"""Answers that take longer than they may, on a server: they end as they are, or say that they could not begin."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

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
        assert refused.value.response.headers["x-should-retry"] == "false"  # the client would, and it would be no use
        with pytest.raises(openai.APIError) as cut:
            list(client.chat.completions.create(model=MODEL, messages=chat("x" * 450), max_tokens=4, stream=True))
        assert cut.value.code == "deadline_exceeded"
    until(lambda: hurried.engine.num_live_requests == 0)


def test_an_answer_that_ends_in_time_is_whole(hurried: Served) -> None:
    with hurried.client() as client:
        completion = client.chat.completions.create(model=MODEL, messages=chat(""), max_tokens=3)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 3
