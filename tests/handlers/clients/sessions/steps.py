"""A session's steps: each has a name and the endpoint that it tries; what became of it is a line of JSON."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else ""
"""The server's address, without a path."""

V1 = f"{URL}/v1"

_Run = TypeVar("_Run", bound=Callable[[], object])
_STEPS: list[tuple[str, str, Callable[[], object]]] = []


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step.

    Attributes:
        endpoint: the last part of its path, such as chat.
        error: a traceback, or empty.
    """

    endpoint: str
    step: str
    error: str


def step(endpoint: str, name: str | None = None) -> Callable[[_Run], _Run]:
    """Make a function without arguments, or a coroutine function, a step. Its name is the function's unless given."""

    def add(run: _Run) -> _Run:
        _STEPS.append((endpoint, name or run.__name__.replace("_", " ").strip(), run))
        return run

    return add


def main() -> None:
    """Take the steps in order, each whatever became of those before, and print their outcomes."""
    with asyncio.Runner() as runner:  # one loop, for clients that keep their connections
        for endpoint, name, run in _STEPS:
            error = ""
            try:
                result = run()
                if inspect.iscoroutine(result):
                    runner.run(result)
            except Exception:  # noqa: BLE001 - every step is told
                error = traceback.format_exc()
            print(json.dumps(asdict(Outcome(endpoint, name, error))), flush=True)
