"""Checks of one group, and what they find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOG_SEVERITY = 2  # ONNX Runtime's warnings: check.py keeps them


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: whether it passed, a line for a reader, and numbers by name, with their units."""

    passed: bool
    detail: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Check:
    """One check. run() may raise anything: that is a failure, and the rest of the group goes on in a new process."""

    name: str
    run: Callable[[], Finding]


@dataclass(frozen=True, slots=True)
class Bundle:
    """The unpacked bundle.

    checks_values: False under a CUDA runtime that computes nothing.
    """

    folder: Path
    checks_values: bool = True

    def judged(self, passed: bool, detail: str, figures: Mapping[str, float] | None = None) -> Finding:
        """A finding about computed values, which passes if they are not checked."""
        if self.checks_values:
            return Finding(passed, detail, figures or {})
        return Finding(True, "it runs; values are unchecked", figures or {})
