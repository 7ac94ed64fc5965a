"""RunPod Serverless: `python -m qwonnx.handlers.functions.runpod` takes jobs, and streams their answers.

A job's input is a conversation as the API takes it, or what RunPod's own route for OpenAI's clients makes of one:
`{"openai_route": "/v1/chat/completions", "openai_input": {...}}`. With `stream: true` the answer comes as items of
/stream: objects, or the API's events as text for that route. Otherwise it is one object. A refused job fails with the
API's error as JSON. RunPod checks who calls.

QWONNX_ARTIFACT names the artifact's folder; the other QWONNX_* variables are the server's. A worker takes as many jobs
at once as the engine runs. The package is imported by main() alone: it takes two seconds, in which the model loads.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
from starlette.types import ASGIApp

from qwonnx.handlers import errors
from qwonnx.handlers.app import create_app, error_response, host_from_environment
from qwonnx.handlers.functions.extensions import answer, conversations
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.http.in_process import asked
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.install import how_to_install
from qwonnx.runtime.settings import RuntimeSettings

_PATH = "/run"  # of plain conversations, inside this process
_ROUTE, _INPUT = "openai_route", "openai_input"
_EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class _Worker:
    """The application, and the host of its engine."""

    app: ASGIApp
    host: ModelHost


@dataclass(frozen=True, slots=True)
class _Request:
    """What a job asks for.

    as_text: events are passed on as they are.
    """

    method: str
    path: str
    body: bytes
    as_text: bool


async def handler(job: dict[str, Any]) -> AsyncGenerator[Any, None]:
    """Answer one job; its items are objects, or texts of events.

    Args:
        job: RunPod's, with an input.
    """
    wanted = _wanted(job)
    if wanted is None:
        message = f"the job's input is not a conversation: send the API's body, or {_ROUTE} and {_INPUT}"
        yield _failure(bytes(error_response(errors.invalid(message, code="invalid_event")).body))
        return
    worker = _worker()
    worker.host.start()
    async with asked(worker.app, wanted.method, wanted.path, wanted.body) as answered:
        if answered.media_type != _EVENTS:
            body = await answered.body()
            yield msgspec.json.decode(body) if answered.status < 400 else _failure(body)
        elif wanted.as_text:
            async for piece in answered.pieces:
                yield piece.decode()
        else:
            async for piece in answered.pieces:
                for item in _objects(piece):
                    yield item


async def collected(job: dict[str, Any]) -> Any:
    """The job's only item, or a list of all: for the package's local test, which does not run a generator."""
    items = [item async for item in handler(job)]
    failed = [item for item in items if isinstance(item, dict) and "error" in item]
    return failed[0] if failed else items[0] if len(items) == 1 else items


def _wanted(job: Any) -> _Request | None:
    given = job.get("input") if isinstance(job, dict) else None
    if not isinstance(given, dict):
        return None
    try:
        if _ROUTE not in given:
            return _Request("POST", _PATH, _encoded(given), as_text=False)
        route, body = given[_ROUTE], given.get(_INPUT)
        if not (isinstance(route, str) and route.startswith("/") and route.isascii()):
            return None
        method = "GET" if body is None else "POST"
        return _Request(method, route.partition("?")[0], b"" if body is None else _encoded(body), as_text=True)
    except (ValueError, TypeError, RecursionError):  # not from JSON, or with half of a surrogate pair
        return None


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


def _failure(body: bytes) -> dict[str, str]:
    """The package turns this into a failed job; a text survives as it is."""
    return {"error": body.decode()}


def _objects(piece: bytes) -> list[Any]:
    """The objects of events; the last event of a stream is not one."""
    lines = [line.removeprefix(b"data: ") for line in piece.splitlines() if line.startswith(b"data: {")]
    objects = [msgspec.json.decode(line) for line in lines]
    return [_failure(line) if "error" in made else made for made, line in zip(objects, lines, strict=True)]


@cache
def _worker() -> _Worker:
    """The application and its host.

    Raises:
        SettingsError: a variable is missing or malformed, or a key is set.
    """
    settings = ServerSettings.from_environment()
    if settings.api_key is not None or settings.api_keys is not None:
        raise SettingsError("RunPod checks who calls, and its jobs have no key: unset QWONNX_API_KEY, QWONNX_API_KEYS")
    host = host_from_environment(settings)
    return _Worker(create_app(host, settings, Extension(apis=[conversations(_PATH, answer)])), host)


def _is_local_test() -> bool:
    """Whether the package will run one job and end, as it decides it."""
    if any(word.startswith("--test_input") for word in sys.argv):
        return True
    serves = "--rp_serve_api" in sys.argv or os.environ.get("RUNPOD_REALTIME_PORT", "0") != "0"
    return not serves and "RUNPOD_WEBHOOK_GET_JOB" not in os.environ


def main() -> None:
    """Load the model, then take jobs until the worker is ended.

    Raises:
        SettingsError, ArtifactError, ...: the package is not installed, or the model cannot be loaded.
    """
    host = _worker().host
    host.start()
    try:
        import runpod
    except ModuleNotFoundError as error:
        raise SettingsError(f"jobs need the package runpod: {how_to_install('runpod')}") from error
    host.wait()
    max_jobs = RuntimeSettings.from_environment().max_num_seqs
    try:
        runpod.serverless.start(
            {
                "handler": collected if _is_local_test() else handler,
                "return_aggregate_stream": True,  # for callers that do not ask for /stream
                "concurrency_modifier": lambda current: max_jobs,
            }
        )
    finally:
        host.close()


if __name__ == "__main__":
    main()
