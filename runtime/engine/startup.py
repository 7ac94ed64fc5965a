"""The seconds of each phase of a start-up, for a log line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StartUp:
    """Phases in the order in which they began."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        began = time.perf_counter()
        self._seconds[name] = 0.0
        try:
            yield
        finally:
            self._seconds[name] = time.perf_counter() - began

    @property
    def seconds(self) -> dict[str, float]:
        """By phase."""
        return dict(self._seconds)

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.3f}" for name, seconds in self._seconds.items())
