"""Where rows live: the one seam between what becomes of a row and the memory that holds its states.

    clear, or restore -> runs of a binding -> copy_out -> move -> release -> discard

Operations name rows and ranges of tokens. An array of a buffer never leaves an implementation: its memory may be the
host's (host_buffers.py) or a device's, where copying means something else. What every implementation keeps to:

- Buffers begin as zeros. Tokens beyond a row's length hold finite numbers, zeros or what earlier sequences left: a
  graph may multiply them by zero, it reads nothing else of them.
- Addresses stay, so a binding is good as long as the buffers: a captured CUDA graph replays the addresses it saw.
- Operations, and runs of a session that is bound, take effect in the order in which they were called.

Which operation is allowed when is for its caller to keep (hybrid_cache.py does); an implementation need not check.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.rows import RowMove

HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Segment(Protocol):
    """An immutable copy of a row's keys and values of num_tokens, and of its fixed states after the last of them.

    Where it lies is the matter of the buffers that made it. Others see its size, hand it back, or drop it.
    """

    @property
    def num_tokens(self) -> int: ...

    @property
    def num_bytes(self) -> int: ...


class Runnable(Protocol):
    """What runs an onnxruntime.IOBinding: a Session."""

    def run(self, binding: Any, /) -> None: ...


class RowBinding(ABC):
    """Consecutive rows of every state, bound to one onnxruntime.IOBinding as inputs and, in place, as outputs.

    The step's other inputs and outputs are arrays of the host. They must stay where they are until others are bound
    under their names.
    """

    @abstractmethod
    def bind_input(self, name: str, array: HostArray) -> None:
        """Have every run read an input from a C-contiguous array, as its content is when the run begins."""

    @abstractmethod
    def bind_output(self, name: str, array: HostArray) -> None:
        """Have every run write an output into a C-contiguous array of its shape."""

    @abstractmethod
    def run(self, session: Runnable) -> None:
        """Run; outputs are in their arrays on return.

        Raises:
            what the session raises; the states of the rows are then undefined: a row is moved or released next.
        """


class StateBuffers(ABC):
    """All states of all rows. For one thread at a time, but to_host().

    Attributes:
        reserved_bytes: of address space, or of the device's memory.
    """

    reserved_bytes: int

    @abstractmethod
    def clear(self, row: int) -> None:
        """A free row is taken by a new sequence: its fixed states become zeros."""

    @abstractmethod
    def bind(self, io: Any, first_row: int, num_rows: int) -> RowBinding:
        """Bind rows to an empty onnxruntime.IOBinding. What the rows hold when it runs counts, not what they do now."""

    @abstractmethod
    def copy_out(self, row: int, start: int, end: int) -> Segment:
        """Copy a row's keys and values of the tokens from start to its length `end`, and its fixed states."""

    @abstractmethod
    def restore(self, row: int, segments: Sequence[Segment]) -> None:
        """A free row is taken by a sequence whose beginning these segments hold, one after the other.

        Args:
            row: the row.
            segments: at least one, all of them made by these buffers; of fixed states the last one's count.
        """

    @abstractmethod
    def move(self, move: RowMove) -> None:
        """Carry what a row holds into a free one; the row it came from is released."""

    @abstractmethod
    def release(self, row: int) -> None:
        """A row's sequence has left: what the row holds is read no more. Its memory stays with it, see discard()."""

    @abstractmethod
    def discard(self, row: int, start: int, end: int) -> None:
        """Give back what memory can be given back of the tokens from start to end, which no sequence has any more."""

    @abstractmethod
    def discard_states(self, row: int) -> None:
        """Give back what memory can be given back of a free row's fixed states."""

    @abstractmethod
    def to_host(self, segments: Sequence[Segment]) -> Iterator[memoryview]:
        """What segments of these buffers hold, one after the other, as bytes. From any thread.

        Yields:
            one part a state, in the manifest's order: the bytes of a C-contiguous array of rows.row_shape() for all
            tokens of the segments; of fixed states the last one's.
        """

    @abstractmethod
    def from_host(self, num_tokens: int, parts: Sequence[memoryview]) -> Segment:
        """The segment whose parts these are.

        Args:
            num_tokens: that it has.
            parts: what to_host() gives. They are never written, and may be used where they lie: a mapped file is then
                read when the segment is restored.
        """


# What makes an engine's buffers: from the states, the rows, and max_model_len, the tokens that a row has room for. It
# raises MemoryError where there is no room for them.
BuffersFactory: TypeAlias = Callable[[Sequence[StateSpec], int, int], StateBuffers]
