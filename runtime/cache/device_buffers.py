"""Rows in the memory of a CUDA device. Each state is one allocation, whose rows a step binds by address.

Everything is queued on the device's one stream: copies of the rows, of a step's small inputs and of its logits, and the
step itself. So the order of calls is the order of effects, and only results that the host reads are waited for.

Segments are in host memory: a device has less of it, and a prefix is restored seldom. The device reserves memory when
it is allocated, so a row's unused tokens cannot be given back.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import HostArray, RowBinding, Runnable, Segment, StateBuffers
from qwonnx.runtime.cache.host_segments import HostSegment, own_segment, segment_bytes, segment_of, storage_dtype
from qwonnx.runtime.cache.rows import RowMove, is_growing, item_bytes, row_bytes, row_shape
from qwonnx.runtime.cuda.device import Block, CopyKind, CudaDevice, DeviceMemory

_ONNX_TYPES = {"bfloat16": 16, "float8e4m3fn": 17}  # ONNX's numbers of types that numpy does not have


@dataclass(frozen=True, slots=True)
class _State:
    """One state of all rows. `written` is as much memory again, for graphs that cannot write where they read."""

    spec: StateSpec
    memory: DeviceMemory
    written: DeviceMemory | None
    row_bytes: int
    head_bytes: int  # of one head with max_model_len tokens, if it grows
    token_bytes: int  # of one token of one head
    num_heads: int

    def row(self, row: int) -> int:
        """Address of a row."""
        return self.memory.address + row * self.row_bytes

    def written_row(self, row: int) -> int:
        """Address at which a step writes a row."""
        return (self.written or self.memory).address + row * self.row_bytes

    def tokens(self, row: int, start: int) -> Block:
        """A row's heads, from token `start` on."""
        return Block(self.row(row) + start * self.token_bytes, self.head_bytes)


@dataclass(frozen=True, slots=True)
class _Twin:
    """Pinned memory of the host, and as much memory of the device, which is copied to or from it."""

    host: HostArray
    device: DeviceMemory

    @property
    def start(self) -> int:
        return self.host.ctypes.data

    def address_of(self, array: HostArray) -> int:
        """Where the device has a part of the host's memory."""
        return self.device.address + array.ctypes.data - self.start


class DeviceBuffers(StateBuffers):
    """Rows on a device.

    Args:
        states, num_rows, max_model_len: as of HostBuffers.
        device: of the session that runs on them.
        host_inputs: names of inputs that the graph reads on the host.
        bound_device: ONNX Runtime's name of the device, for bindings.
        in_place: steps write states where they read them. Otherwise the rows are twice as large, and copied after
            each step.

    Raises:
        MemoryError: the device has too little memory.
    """

    def __init__(
        self,
        states: Sequence[StateSpec],
        num_rows: int,
        max_model_len: int,
        *,
        device: CudaDevice,
        host_inputs: Collection[str] = (),
        bound_device: str = "cuda",
        in_place: bool = True,
    ) -> None:
        self.device, self.bound_device, self.host_inputs = device, bound_device, frozenset(host_inputs)
        self._in_place = in_place
        self._states = tuple(_allocated(spec, num_rows, max_model_len, device, in_place) for spec in states)
        self._growing = [state for state in self._states if is_growing(state.spec)]
        self._fixed = [state for state in self._states if not is_growing(state.spec)]
        self._twins: list[_Twin] = []  # sorted by their addresses
        self.reserved_bytes = sum(state.memory.num_bytes for state in self._states) * (1 if in_place else 2)

    def clear(self, row: int) -> None:
        for state in self._fixed:
            self.device.clear(Block(state.row(row), state.row_bytes), state.row_bytes)

    def new_host_array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> HostArray:
        """Pinned memory, with its twin on the device; both stay as long as the buffers."""
        host = self.device.pinned(shape, dtype)
        twin = _Twin(host, self.device.allocate(host.nbytes))
        self._twins.insert(bisect_right(self._twins, twin.start, key=lambda each: each.start), twin)
        return host

    def bind(self, io: Any, first_row: int, num_rows: int) -> RowBinding:
        for state in self._states:
            shape = (num_rows, *state.spec.shape[1:])
            sizes = [state.head_bytes // state.token_bytes if size == "max_model_len" else size for size in shape]
            dtype = _ONNX_TYPES.get(state.spec.dtype) or np.dtype(state.spec.dtype)
            where = (self.bound_device, self.device.index, dtype, sizes)
            io.bind_input(state.spec.past, *where, state.row(first_row))
            io.bind_output(state.spec.present, *where, state.written_row(first_row))
        return _DeviceBinding(self, io, range(first_row, first_row + num_rows))

    def keep_written(self, rows: range) -> None:
        """Copy what a step has written to where the next one reads it, unless that is one place."""
        for state in () if self._in_place else self._states:
            num_bytes = len(rows) * state.row_bytes
            self._copy(CopyKind.ON_DEVICE, state.row(rows.start), state.written_row(rows.start), num_bytes)

    def copy_out(self, row: int, start: int, end: int) -> Segment:
        arrays = {}
        for state in self._growing:
            width = (end - start) * state.token_bytes
            array = np.empty(row_shape(state.spec, end - start), storage_dtype(state.spec))
            target = Block(array.ctypes.data, width)
            self.device.copy(CopyKind.TO_HOST, target, state.tokens(row, start), width, state.num_heads)
            arrays[state.spec.past] = array
        for state in self._fixed:
            array = np.empty(row_shape(state.spec, 0), storage_dtype(state.spec))
            self._copy(CopyKind.TO_HOST, array.ctypes.data, state.row(row), state.row_bytes)
            arrays[state.spec.past] = array
        self.device.synchronize()
        return HostSegment(end - start, arrays)

    def restore(self, row: int, segments: Sequence[Segment]) -> None:
        start = 0
        for segment in map(own_segment, segments):
            for state in self._growing:
                array = segment.arrays[state.spec.past]
                width = segment.num_tokens * state.token_bytes
                source = Block(array.ctypes.data, width)
                self.device.copy(CopyKind.TO_DEVICE, state.tokens(row, start), source, width, state.num_heads)
            start += segment.num_tokens
        for state in self._fixed:
            array = own_segment(segments[-1]).arrays[state.spec.past]
            self._copy(CopyKind.TO_DEVICE, state.row(row), array.ctypes.data, state.row_bytes)
        self.device.synchronize()  # the segments may go

    def move(self, move: RowMove) -> None:
        for state in self._growing:
            width = move.num_tokens * state.token_bytes
            if width:
                target, source = state.tokens(move.target, 0), state.tokens(move.source, 0)
                self.device.copy(CopyKind.ON_DEVICE, target, source, width, state.num_heads)
        for state in self._fixed:
            self._copy(CopyKind.ON_DEVICE, state.row(move.target), state.row(move.source), state.row_bytes)

    def release(self, row: int) -> None:
        """Do nothing: the next sequence clears the states that it reads."""

    def discard(self, row: int, start: int, end: int) -> None:
        """Do nothing: the device's memory is reserved."""

    def discard_states(self, row: int) -> None:
        """Do nothing: the device's memory is reserved."""

    def to_host(self, segments: Sequence[Segment]) -> Iterator[memoryview]:
        return segment_bytes([state.spec for state in self._states], segments)

    def from_host(self, num_tokens: int, parts: Sequence[memoryview]) -> Segment:
        return segment_of([state.spec for state in self._states], num_tokens, parts)

    def twin_address(self, array: HostArray) -> int:
        """Where the device has an array of new_host_array(), or a view of one."""
        place = bisect_right(self._twins, array.ctypes.data, key=lambda each: each.start)
        assert place, "an array that new_host_array() did not make"
        twin = self._twins[place - 1]
        assert array.ctypes.data + array.nbytes <= twin.start + twin.host.nbytes, "an array of other memory"
        return twin.address_of(array)

    def _copy(self, kind: CopyKind, target: int, source: int, num_bytes: int) -> None:
        self.device.copy(kind, Block(target, num_bytes), Block(source, num_bytes), num_bytes)


class _DeviceBinding(RowBinding):
    """Rows of a device, and further inputs and outputs, which are copied around every run."""

    def __init__(self, buffers: DeviceBuffers, io: Any, rows: range) -> None:
        self._buffers, self._io, self._rows = buffers, io, rows
        self._inputs: dict[str, HostArray] = {}
        self._outputs: dict[str, HostArray] = {}

    def bind_input(self, name: str, array: HostArray) -> None:
        if name in self._buffers.host_inputs:
            self._io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            return
        self._inputs[name] = array
        address = self._buffers.twin_address(array)
        device = self._buffers.bound_device, self._buffers.device.index
        self._io.bind_input(name, *device, array.dtype, array.shape, address)

    def bind_output(self, name: str, array: HostArray, *, on_demand: bool = False) -> None:
        if not on_demand:
            self._outputs[name] = array
        address = self._buffers.twin_address(array)
        device = self._buffers.bound_device, self._buffers.device.index
        self._io.bind_output(name, *device, array.dtype, array.shape, address)

    def fetch(self, array: HostArray) -> None:
        self._copy(CopyKind.TO_HOST, array.ctypes.data, self._buffers.twin_address(array), array.nbytes)
        self._buffers.device.synchronize()

    def run(self, session: Runnable, *, reads_outputs: bool = True) -> None:
        device = self._buffers.device
        for array in self._inputs.values():
            self._copy(CopyKind.TO_DEVICE, self._buffers.twin_address(array), array.ctypes.data, array.nbytes)
        session.run(self._io)
        self._buffers.keep_written(self._rows)
        for array in self._outputs.values() if reads_outputs else ():
            self._copy(CopyKind.TO_HOST, array.ctypes.data, self._buffers.twin_address(array), array.nbytes)
        device.synchronize()

    def _copy(self, kind: CopyKind, target: int, source: int, num_bytes: int) -> None:
        if num_bytes:
            self._buffers.device.copy(kind, Block(target, num_bytes), Block(source, num_bytes), num_bytes)


def _allocated(spec: StateSpec, num_rows: int, max_model_len: int, device: CudaDevice, in_place: bool) -> _State:
    one_row = row_bytes(spec, max_model_len)
    growing = is_growing(spec)
    num_heads = int(spec.shape[1]) if growing else 1
    token_bytes = math.prod(row_shape(spec, 1)[1:]) * item_bytes(spec) if growing else one_row
    memory = device.allocate(num_rows * one_row)
    written = None if in_place else device.allocate(num_rows * one_row)
    return _State(spec, memory, written, one_row, one_row // num_heads, token_bytes, num_heads)
