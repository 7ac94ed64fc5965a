"""How much memory the tensors of the weight stage may take: its bounds, the cut of slices, the account of bytes.

The account holds for all that is under way, whatever the size of a layer or of a tensor: bytes as they are read, the
float32 values they become, and codes and scales that wait to be written. Python, torch and the graph are not in it:
they take about 0.3 GB, and more for a graph of many layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwonnx.export.errors import ExportError
from qwonnx.runtime.quantities import bytes_text

DEFAULT_MEMORY_BYTES = 2_000_000_000
MIN_MEMORY_BYTES = 64_000_000

# Values that a thread takes on at a time. The time that quantising takes for each hardly depends on it: by a tenth from
# 2^16 to 2^22. This many keeps reads and writes long. A small budget makes slices smaller down to _FEW_VALUES, then
# takes threads away, then goes on.
_MANY_VALUES = 1 << 20
_FEW_VALUES = 1 << 16
# The largest block of weights that share a scale: slices are cut where all blocks end.
SLICE_ALIGNMENT = 256
# Slices under way for each thread: one in the making, one waiting for a thread, one waiting to be written.
SLICES_PER_THREAD = 3


def check_memory(num_bytes: int) -> None:
    """Refuse a budget that is too small to work with.

    Raises:
        ExportError: it is.
    """
    if num_bytes < MIN_MEMORY_BYTES:
        raise ExportError(
            f"memory of {bytes_text(num_bytes)} is less than the {bytes_text(MIN_MEMORY_BYTES)} that an export needs:"
            " allow more"
        )


@dataclass(frozen=True, slots=True)
class SliceCut:
    """How the work is cut for a budget. What is written does not depend on it."""

    num_threads: int
    max_values: int  # of a slice; a multiple of SLICE_ALIGNMENT

    @property
    def max_slices(self) -> int:
        """Slices under way at a time."""
        return self.num_threads * SLICES_PER_THREAD


def cut_for(memory_bytes: int, num_threads: int, slice_bytes: Callable[[int], int]) -> SliceCut:
    """Slices and threads for a budget.

    Args:
        memory_bytes: what slices under way may take together.
        num_threads: how many threads there may be; fewer are used where the budget is too small for so many.
        slice_bytes: what a slice of so many values takes at most, while it is in the making.
    """
    values = _MANY_VALUES
    while values > _FEW_VALUES and num_threads * SLICES_PER_THREAD * slice_bytes(values) > memory_bytes:
        values //= 2
    threads = max(1, min(num_threads, memory_bytes // (SLICES_PER_THREAD * slice_bytes(values))))
    while values > SLICE_ALIGNMENT and SLICES_PER_THREAD * slice_bytes(values) > memory_bytes:
        values //= 2
    return SliceCut(threads, values)


class MemoryAccount:
    """Bytes in flight, and the most there ever were. One thread keeps it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.peak = 0

    def admits(self, num_bytes: int) -> bool:
        """Whether so many more bytes stay within the limit; a single slice must always be let in."""
        return self.in_flight == 0 or self.in_flight + num_bytes <= self.limit

    def take(self, num_bytes: int) -> None:
        self.in_flight += num_bytes
        self.peak = max(self.peak, self.in_flight)

    def give_back(self, num_bytes: int) -> None:
        self.in_flight -= num_bytes
        assert self.in_flight >= 0, "more bytes given back than taken"
