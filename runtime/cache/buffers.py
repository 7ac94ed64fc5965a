"""The buffers of rows: the interface between the accounting of rows and the memory that holds their states.

    clear, or restore -> runs of a binding -> copy_out -> move -> release -> discard

Operations name rows and ranges of tokens. An array of a buffer never leaves an implementation: its memory may be the
host's (host_buffers.py) or a device's, where a copy works differently. Every implementation guarantees:

- Buffers begin as zeros. Tokens beyond a row's length hold finite numbers (zeros, or values of earlier sequences): a
  graph may multiply them by zero, and does not use them otherwise.
- Addresses do not change, so a binding is valid as long as the buffers: a captured CUDA graph replays its addresses.
- Operations, and runs of a bound session, take effect in the order of their calls.

The caller (hybrid_cache.py) calls an operation only when it is allowed; an implementation need not check this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.rows import RowMove

HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Segment(Protocol):
    """An immutable copy of a row's keys and values of num_tokens tokens, and of its fixed states after the last one.

    Only the buffers that made a segment know its memory. Other code reads its size, passes it back, or drops it.
    """

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...


class Runnable(Protocol):
    """Runs an onnxruntime.IOBinding: a Session."""

    def run(self, binding: Any, /) -> None: ...


class RowBinding(ABC):
    """Consecutive rows of every state, bound to one onnxruntime.IOBinding as inputs and, in place, as outputs.

    The step's other inputs and outputs are C-contiguous arrays of StateBuffers.new_host_array(), or views of these.
    They must not move until others are bound under their names.
    """

    @abstractmethod
    def bind_input(self, name: str, array: HostArray) -> None:
        """Bind an input; every run reads its content at the start of the run."""

    @abstractmethod
    def bind_output(self, name: str, array: HostArray, *, on_demand: bool = False) -> None:
        """Bind an output to an array of its shape; every run writes into it, or on_demand only fetch() does."""

    @abstractmethod
    def fetch(self, array: HostArray) -> None:
        """Write a part of an on-demand output, as the last run left it. The part is a view of the bound array."""

    @abstractmethod
    def run(self, session: Runnable, *, reads_outputs: bool = True) -> None:
        """Run; outputs are in their arrays on return, if reads_outputs.

        Raises:
            the errors of the session. The states of the rows are then undefined; the caller moves or releases these
            rows.
        """


class StateBuffers(ABC):
    """All states of all rows. For one thread at a time, except to_host().

    Attributes:
        reserved_bytes: of address space, or of the device's memory.
    """

    reserved_bytes: int

    @abstractmethod
    def clear(self, row: int) -> None:
        """Set a free row's fixed states to zero, for a new sequence."""

    @abstractmethod
    def new_host_array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> HostArray:
        """An array of zeros of the host, C-contiguous, for inputs or outputs of steps.

        Raises:
            MemoryError: there is no room for it.
        """

    @abstractmethod
    def bind(self, io: Any, first_row: int, num_rows: int) -> RowBinding:
        """Bind rows to an empty onnxruntime.IOBinding. A run uses the rows' content at the time of the run."""

    @abstractmethod
    def copy_out(self, row: int, start: int, end: int) -> Segment:
        """Copy a row's fixed states, and its keys and values from token start to its length `end`."""

    @abstractmethod
    def restore(self, row: int, segments: Sequence[Segment]) -> None:
        """Fill a free row with the beginning of a sequence, from consecutive segments.

        Args:
            row: the row.
            segments: at least one, all made by these buffers. The fixed states come from the last one.
        """

    @abstractmethod
    def move(self, move: RowMove) -> None:
        """Move a row's content to a free row, and release the source row."""

    @abstractmethod
    def release(self, row: int) -> None:
        """Free a row, whose content is then not read any more. It keeps its memory; see discard()."""

    @abstractmethod
    def discard(self, row: int, start: int, end: int) -> None:
        """Give back the memory of a row's unused tokens from start to end, as far as possible."""

    @abstractmethod
    def discard_states(self, row: int) -> None:
        """Give back the memory of a free row's fixed states, as far as possible."""

    @abstractmethod
    def to_host(self, segments: Sequence[Segment]) -> Iterator[memoryview]:
        """The content of consecutive segments of these buffers, as bytes. From any thread.

        Yields:
            one part per state, in the manifest's order: the bytes of a C-contiguous array of rows.row_shape() for all
            tokens of the segments. Fixed states are those of the last segment.
        """

    @abstractmethod
    def from_host(self, num_tokens: int, parts: Sequence[memoryview]) -> Segment:
        """Make a segment from parts.

        Args:
            num_tokens: tokens of the segment.
            parts: as to_host() yields them. They are never written, and may be used in place: a mapped file is then
                read when the segment is restored.
        """


# Makes an engine's buffers from its states, the number of rows, and max_model_len (tokens per row). Raises MemoryError
# if they do not fit.
BuffersFactory: TypeAlias = Callable[[Sequence[StateSpec], int, int], StateBuffers]
