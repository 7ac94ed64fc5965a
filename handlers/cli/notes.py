"""The lines about a checkpoint that `qwonnx export` and `qwonnx check` both print."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console

from qwonnx.runtime.quantities import bytes_text

if TYPE_CHECKING:  # the exporter, which a server does not have
    from qwonnx.export.checkpoint.weight_source import SkippedPart


def print_notes(console: Console, skipped: Iterable[SkippedPart], notes: Iterable[str]) -> None:
    """A line for every part that is skipped, and for everything that is not read plainly."""
    for part in skipped:
        tensors = "1 tensor" if part.num_tensors == 1 else f"{part.num_tensors} tensors"
        line = f"skipped: {part.name}, {tensors}, {bytes_text(part.num_bytes)}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
