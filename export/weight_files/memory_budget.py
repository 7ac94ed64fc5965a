"""The memory of the weight stage's tensors: its bounds, the size of slices, the account of bytes.

The account includes everything in flight, for layers and tensors of any size: bytes as they are read, their float32
values, and codes and scales that wait to be written. It does not include Python, torch and the graph, which take about
0.3 GB, and more for a graph of many layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qwonnx.export.errors import ExportError
from qwonnx.runtime.quantities import bytes_text

DEFAULT_MEMORY_BYTES = 2_000_000_000
MIN_MEMORY_BYTES = 64_000_000

# Values of a slice. The time of quantising a value hardly depends on this: a tenth from 2^16 to 2^22. Large slices keep
# reads and writes long. A small budget first makes slices smaller, down to _FEW_VALUES, then removes threads, then
# makes slices smaller again.
_MANY_VALUES = 1 << 20
_FEW_VALUES = 1 << 16
# The largest block of weights that share a scale: a slice ends where blocks of all sizes end.
SLICE_ALIGNMENT = 256
# Slices in flight for each thread: one is being made, one waits for a thread, one waits to be written.
SLICES_PER_THREAD = 3


def check_memory(num_bytes: int) -> None:
    """Refuse a budget that is too small to work with.

    Raises:
        ExportError: it is too small.
    """
    if num_bytes < MIN_MEMORY_BYTES:
        raise ExportError(
            f"memory of {bytes_text(num_bytes)} is less than the {bytes_text(MIN_MEMORY_BYTES)} that an export needs:"
            " allow more"
        )


@dataclass(frozen=True, slots=True)
class SliceCut:
    """The size of slices and the threads for a budget. The written bytes do not depend on it."""

    num_threads: int
    max_values: int  # of a slice; a multiple of SLICE_ALIGNMENT

    @property
    def max_slices(self) -> int:
        """Slices in flight at a time."""
        return self.num_threads * SLICES_PER_THREAD


def cut_for(memory_bytes: int, num_threads: int, slice_bytes: Callable[[int], int]) -> SliceCut:
    """Slices and threads for a budget.

    Args:
        memory_bytes: limit of all slices in flight.
        num_threads: the most threads; a small budget uses fewer.
        slice_bytes: number of values -> the most memory of such a slice while it is made.
    """
    values = _MANY_VALUES
    while values > _FEW_VALUES and num_threads * SLICES_PER_THREAD * slice_bytes(values) > memory_bytes:
        values //= 2
    threads = max(1, min(num_threads, memory_bytes // (SLICES_PER_THREAD * slice_bytes(values))))
    while values > SLICE_ALIGNMENT and SLICES_PER_THREAD * slice_bytes(values) > memory_bytes:
        values //= 2
    return SliceCut(threads, values)


class MemoryAccount:
    """Bytes in flight, and their peak. Only one thread uses it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.peak = 0

    def admits(self, num_bytes: int) -> bool:
        """Whether `num_bytes` more stay within the limit; a single slice is always admitted."""
        return self.in_flight == 0 or self.in_flight + num_bytes <= self.limit

    def take(self, num_bytes: int) -> None:
        self.in_flight += num_bytes
        self.peak = max(self.peak, self.in_flight)

    def give_back(self, num_bytes: int) -> None:
        self.in_flight -= num_bytes
        assert self.in_flight >= 0, "more bytes given back than taken"
