"""The progress bar of `qwonnx export`, and its messages after an interruption."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from qwonnx.handlers.cli.failures import CommandError
from qwonnx.runtime.errors import QwonnxRuntimeError

if TYPE_CHECKING:  # imports torch
    from qwonnx.export.weight_files.progress import ExportProgress

_STAGES = {
    "trace": "tracing the model",
    "calibrate": "calibrating",
    "verify": "checking written files",
    "weights": "writing weights",
    "finish": "finishing",
}


class ExportBar:
    """A bar with bytes, speed and time left; the speed is that of this run, without resumed work."""

    def __init__(self, progress: Progress) -> None:
        self.peak_bytes = 0
        self._progress = progress
        self._task = progress.add_task("reading the checkpoint", total=None)
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


@contextmanager
def export_bar(console: Console) -> Iterator[ExportBar]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,  # only the summary or the line of an error stays
    ) as progress:
        yield ExportBar(progress)


@contextmanager
def note_that_the_artifact_is_whole(out: Path) -> Iterator[None]:
    try:
        yield
    except (QwonnxRuntimeError, CommandError) as error:
        raise CommandError(f"{error}; {out} is complete without it: continue with qwonnx bake") from error


@contextmanager
def note_what_is_kept(out: Path) -> Iterator[None]:
    """On Ctrl-C, print that the work is kept."""
    from qwonnx.export.weight_files.unfinished import incomplete_folder

    try:
        yield
    except KeyboardInterrupt:
        if incomplete_folder(out).exists():
            print(
                f"qwonnx: interrupted; the work is kept in {incomplete_folder(out)}: continue with --resume",
                file=sys.stderr,
            )
        raise
