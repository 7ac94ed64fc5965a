"""The progress of `qwonnx export`: a bar on a terminal, else a line every half minute; and messages after Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.progress_lines import LINE_SECONDS, lines_every
from qwonnx.runtime.errors import QwonnxRuntimeError
from qwonnx.runtime.quantities import bytes_text

if TYPE_CHECKING:  # imports torch
    from qwonnx.export.weight_files.progress import ExportProgress

_STAGES = {
    "download": "downloading",
    "trace": "tracing the model",
    "calibrate": "calibrating",
    "verify": "checking written files",
    "weights": "writing weights",
    "finish": "finishing",
}
_FIRST = "reading the checkpoint"
_LAYERS = "calibrate"  # the stage that counts layers, not bytes


class ShownProgress(Protocol):
    """What an export reports to."""

    peak_bytes: int

    def show(self, progress: ExportProgress) -> None: ...


class ExportBar:
    """A bar with bytes, speed and time left; the speed is that of this run, without resumed work."""

    def __init__(self, progress: Progress) -> None:
        self.peak_bytes = 0
        self._progress = progress
        self._task = progress.add_task(_FIRST, total=None)
        self._stage = ""

    def show(self, progress: ExportProgress) -> None:
        self.peak_bytes = max(self.peak_bytes, progress.peak_bytes)
        total = progress.total_bytes or None
        if progress.stage != self._stage:
            self._stage = progress.stage
            self._progress.reset(
                self._task,
                description=_STAGES.get(progress.stage, progress.stage),
                total=total,
                completed=progress.resumed_bytes,
            )
        self._progress.update(self._task, completed=progress.done_bytes, total=total)


class ExportLines:
    """The same facts as one line of text, for logs; safe to read from another thread.

    Args:
        now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.peak_bytes = 0
        self._now = now
        self._begun = now()
        self._started = self._begun  # of the stage
        self._progress: ExportProgress | None = None

    def show(self, progress: ExportProgress) -> None:
        self.peak_bytes = max(self.peak_bytes, progress.peak_bytes)
        if self._progress is None or progress.stage != self._progress.stage:
            self._started = self._now()
        self._progress = progress

    def line(self) -> str:
        """Stage, bytes, rate and time left; the time since the start where a stage has no bytes."""
        progress, now = self._progress, self._now()
        if progress is None or not progress.total_bytes:
            stage = _FIRST if progress is None else _STAGES.get(progress.stage, progress.stage)
            return f"{stage}, {now - self._begun:.0f} s since the start"
        stage = _STAGES.get(progress.stage, progress.stage)
        if progress.stage == _LAYERS:
            return f"{stage}: {progress.done_bytes} of {progress.total_bytes} layers{self._left(progress, now)}"
        done, total = bytes_text(progress.done_bytes), bytes_text(progress.total_bytes)
        rate = self._rate(progress, now)
        speed = f", {bytes_text(int(rate))}/s" if rate else ""
        return f"{stage}: {done} of {total}{speed}{self._left(progress, now)}"

    def _rate(self, progress: ExportProgress, now: float) -> float:
        return (progress.done_bytes - progress.resumed_bytes) / max(now - self._started, 1e-9)

    def _left(self, progress: ExportProgress, now: float) -> str:
        rate = self._rate(progress, now)
        if rate <= 0:
            return ""
        seconds = (progress.total_bytes - progress.done_bytes) / rate
        return f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"


@contextmanager
def export_progress(console: Console, seconds: float = LINE_SECONDS) -> Iterator[ShownProgress]:
    """Show progress on a terminal as a bar, and elsewhere as a line every `seconds`."""
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,  # only the summary or the line of an error stays
        ) as progress:
            yield ExportBar(progress)
        return
    lines = ExportLines()
    with lines_every(seconds, lines.line):
        yield lines


@contextmanager
def note_that_the_artifact_is_whole(out: Path) -> Iterator[None]:
    try:
        yield
    except (QwonnxRuntimeError, CommandError) as error:
        raise CommandError(f"{error}; {out} is complete without it: continue with qwonnx bake") from error


@contextmanager
def note_what_is_kept(out: Path) -> Iterator[None]:
    """On Ctrl-C, print what is kept and how to go on."""
    from qwonnx.export.weight_files.unfinished import incomplete_folder

    try:
        yield
    except KeyboardInterrupt:
        folder = incomplete_folder(out)
        if folder.exists():
            kept = bytes_text(sum(path.stat().st_size for path in folder.iterdir() if path.is_file()))
            said = f"{kept} are kept in {folder}: run the same command with --resume to go on"
        else:
            said = f"nothing is kept and {out} is as it was: run the same command to start again"
        print(f"qwonnx: interrupted; {said}", file=sys.stderr)
        raise
