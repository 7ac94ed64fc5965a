"""Rows in host memory: one array per state, reserved as a whole; a page takes memory when it is first written.

Only this module slices states and binds host memory to a graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import HostArray, RowBinding, Runnable, Segment, StateBuffers
from qwonnx.runtime.cache.host_segments import HostSegment, own_segment, segment_bytes, segment_of, storage_dtype
from qwonnx.runtime.cache.pages import PagedArray
from qwonnx.runtime.cache.rows import RowMove, is_growing, row_shape


class HostBinding(RowBinding):
    """Binds host arrays in place, under the names of a graph's inputs and outputs.

    Args:
        io: an onnxruntime.IOBinding.
    """

    def __init__(self, io: Any) -> None:
        self._io = io

    def bind_input(self, name: str, array: HostArray) -> None:
        self._io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def bind_output(self, name: str, array: HostArray, *, on_demand: bool = False) -> None:
        self._io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def fetch(self, array: HostArray) -> None:
        """Do nothing: runs write into the host's memory."""

    def run(self, session: Runnable, *, reads_outputs: bool = True) -> None:
        session.run(self._io)


class HostBuffers(StateBuffers):
    """Rows in arrays with the batch axis first.

    Args:
        states: the manifest's.
        num_rows: rows to reserve.
        max_model_len: tokens a row has room for.

    Raises:
        MemoryError: the system does not grant the address space.
    """

    def __init__(self, states: Sequence[StateSpec], num_rows: int, max_model_len: int) -> None:
        self._states = tuple(states)
        pages = [PagedArray((num_rows, *row_shape(spec, max_model_len)), storage_dtype(spec)) for spec in self._states]
        self._growing = {spec.past: each for spec, each in zip(states, pages, strict=True) if is_growing(spec)}
        self._fixed = {spec.past: each for spec, each in zip(states, pages, strict=True) if not is_growing(spec)}
        self.reserved_bytes = sum(each.array.nbytes for each in pages)

    def clear(self, row: int) -> None:
        for pages in self._fixed.values():
            pages.array[row] = 0

    def new_host_array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> HostArray:
        return np.zeros(tuple(shape), dtype)

    def bind(self, io: Any, first_row: int, num_rows: int) -> RowBinding:
        binding = HostBinding(io)
        all_pages = self._growing | self._fixed
        for spec in self._states:
            rows = all_pages[spec.past].array[first_row : first_row + num_rows]
            binding.bind_input(spec.past, rows)
            binding.bind_output(spec.present, rows)
        return binding

    def copy_out(self, row: int, start: int, end: int) -> Segment:
        growing = {name: pages.array[row, :, start:end].copy() for name, pages in self._growing.items()}
        fixed = {name: pages.array[row].copy() for name, pages in self._fixed.items()}
        return HostSegment(end - start, growing | fixed)

    def restore(self, row: int, segments: Sequence[Segment]) -> None:
        start = 0
        for segment in map(own_segment, segments):
            end = start + segment.num_tokens
            for name, pages in self._growing.items():
                pages.array[row, :, start:end] = segment.arrays[name]
            start = end
        for name, pages in self._fixed.items():
            pages.array[row] = own_segment(segments[-1]).arrays[name]

    def move(self, move: RowMove) -> None:
        for pages in self._growing.values():
            pages.array[move.target, :, : move.num_tokens] = pages.array[move.source, :, : move.num_tokens]
        for pages in self._fixed.values():
            pages.array[move.target] = pages.array[move.source]

    def release(self, row: int) -> None:
        """Do nothing: the next sequence clears the states that it reads."""

    def discard(self, row: int, start: int, end: int) -> None:
        for pages in self._growing.values():
            row_bytes, head_bytes, token_bytes = pages.array.strides[:3]
            for head in range(pages.array.shape[1]):
                first = row * row_bytes + head * head_bytes
                pages.discard(first + start * token_bytes, first + end * token_bytes, first + head_bytes)

    def discard_states(self, row: int) -> None:
        for pages in self._fixed.values():
            row_bytes = pages.array.strides[0]
            pages.discard(row * row_bytes, (row + 1) * row_bytes, (row + 1) * row_bytes)

    def to_host(self, segments: Sequence[Segment]) -> Iterator[memoryview]:
        return segment_bytes(self._states, segments)

    def from_host(self, num_tokens: int, parts: Sequence[memoryview]) -> Segment:
        return segment_of(self._states, num_tokens, parts)
