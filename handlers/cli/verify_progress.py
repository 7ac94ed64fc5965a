"""The progress of `qwonnx verify`: a bar on a terminal, else a line every half minute; and a message after Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qwonnx.handlers.cli.progress_lines import LINE_SECONDS, lines_every
from qwonnx.runtime.quantities import bytes_text

if TYPE_CHECKING:  # imports torch
    from qwonnx.export.verification.progress import VerificationProgress

# What each stage does, and what it counts; None: bytes.
_STAGES: dict[str, tuple[str, str | None]] = {
    "hash": ("hashing the artifact", None),
    "artifact": ("running the artifact", "tokens"),
    "write": ("the artifact writes a text", "tokens"),
    "layers": ("running the checkpoint", "layers"),
    "head": ("comparing predictions", "rows of the head"),
}
_FIRST = "opening both models"
_MIB = 1 << 20


class ShownProgress(Protocol):
    """What a verification reports to."""

    def show(self, progress: VerificationProgress) -> None: ...


class VerifyBar:
    """A bar for the stage, with the time left."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(_FIRST, total=None)
        self._stage = ""

    def show(self, progress: VerificationProgress) -> None:
        name, unit = _STAGES[progress.stage]
        scale = 1 if unit else _MIB
        if progress.stage != self._stage:
            self._stage = progress.stage
            shown = f"{name}, {unit or 'MiB'}"
            self._progress.reset(
                self._task, description=shown, total=progress.total // scale, completed=progress.resumed // scale
            )
        self._progress.update(self._task, completed=progress.done // scale)


class VerifyLines:
    """The same as one line of text, for logs; safe to read from another thread.

    Args:
        now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._started = now()  # of the stage
        self._progress: VerificationProgress | None = None

    def show(self, progress: VerificationProgress) -> None:
        if self._progress is None or progress.stage != self._progress.stage:
            self._started = self._now()
        self._progress = progress

    def line(self) -> str:
        """Stage, how much of it is done, and the time left."""
        progress, seconds = self._progress, self._now() - self._started
        if progress is None:
            return f"{_FIRST}, {seconds:.0f} s since the start"
        name, unit = _STAGES[progress.stage]
        done, total = (
            (bytes_text(progress.done), bytes_text(progress.total)) if unit is None else (progress.done, progress.total)
        )
        shown = f"{name}: {done} of {total} {unit or ''}".rstrip()
        here = progress.done - progress.resumed
        if here <= 0 or seconds <= 0:
            return shown
        left = (progress.total - progress.done) * seconds / here
        return f"{shown}, {left:.0f} s left" if left < 120 else f"{shown}, {left / 60:.0f} min left"


@contextmanager
def verify_progress(console: Console, seconds: float = LINE_SECONDS) -> Iterator[ShownProgress]:
    """Show progress on a terminal as a bar, and elsewhere as a line every `seconds`."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            yield VerifyBar(progress)
        return
    lines = VerifyLines()
    with lines_every(seconds, lines.line):
        yield lines


@contextmanager
def note_that_it_goes_on(artifact: Path, work: Path | None) -> Iterator[None]:
    """On Ctrl-C, print what is kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        from qwonnx.export.verification.work_folder import work_folder_of

        folder = work or work_folder_of(artifact)
        kept = f"what is done is kept in {folder}" if folder.exists() else "nothing is kept"
        print(f"qwonnx: interrupted; {kept}: run the same command to go on", file=sys.stderr)
        raise
