"""How often text that looked like a tool call, and was none, was given as text. Metrics read it.

One count for the process, because a parser belongs to one answer and knows no engine.
"""

from __future__ import annotations

import threading


class FallbackCount:
    """A count that only grows. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0

    def add(self) -> None:
        """One more."""
        with self._lock:
            self._total += 1

    @property
    def total(self) -> int:
        return self._total


PARSER_FALLBACKS = FallbackCount()
