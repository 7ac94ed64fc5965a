"""What a benchmark cannot do."""

from __future__ import annotations


class BenchError(Exception):
    """A measurement failed. The message names the cause and the remedy, in one line."""
