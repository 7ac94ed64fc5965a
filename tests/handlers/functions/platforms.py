"""Platforms' servers on loopback, and what all of them must do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from qwonnx.handlers.functions.platform import Platform, find
from tests.handlers.serving import MODEL, Served, chat, paced, serving

BODY: Mapping[str, Any] = {"model": MODEL, "messages": chat("Hi"), "max_tokens": 4}
NOWHERE = Path("/nonexistent")


def found(name: str, root: Path = NOWHERE, /, **environment: str) -> Platform:
    """The platform of this name, with these variables."""
    platform = find(name, environment, root)
    assert platform is not None
    return platform


@contextmanager
def serving_on(name: str, folder: Path, **environment: str) -> Iterator[Served]:
    """Serve an artifact as on a platform with these variables."""
    platform = found(name, **environment)
    settings = dataclasses.replace(platform.settings(environment), shutdown_seconds=0.5)
    with serving(folder, settings=settings, make_app=platform.application) as served:
        yield served


def post(served: Served, path: str, body: Any = BODY, **options: Any) -> httpx.Response:
    with served.http() as client:
        return client.post(path, json=body, **options)


def get(served: Served, path: str) -> httpx.Response:
    with served.http() as client:
        return client.get(path)


def content_of(completion: Any) -> str:
    content = completion["choices"][0]["message"]["content"]
    assert isinstance(content, str)
    return content


def check_stream(served: Served, path: str) -> None:
    """The first event comes before the last token is sampled, and the last one says that it ended."""
    body = {**BODY, "max_tokens": 40, "stream": True}
    with paced(served.engine) as steps, served.http() as client, client.stream("POST", path, json=body) as answer:
        assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
        pieces = answer.iter_text()
        assert next(pieces).startswith("data: {")
        sampled = len(steps)
        rest = "".join(pieces)
    assert sampled < 30
    assert rest.endswith("data: [DONE]\n\n")


def check_too_large(served: Served, path: str, num_bytes: int) -> None:
    """A body beyond the limit is refused in the API's form."""
    answer = post(served, path, {**BODY, "messages": chat("x" * num_bytes)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
