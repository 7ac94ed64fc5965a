"""Rows that are reachable only through StateBuffers: like a device's memory for the host, and stricter.

    vault     the rows' bytes. No array of it leaves: operations copy in and out of it, and each one is counted.
    window    the memory that a graph is bound to, only for a run. The rows are copied into it before a run and out of
              it afterwards; between runs it is poison. The arrays of a step's inputs and outputs in it are poison too:
              the host's own arrays are read when a run begins and written when it has ended.

Poison is bytes of 0xff, NaN in every float. A free row and the tokens behind a row's length are poison, so an answer
that depends on them is wrong. StateBuffers guarantees less, namely finite numbers behind a length: a graph that
multiplies them by zero does not run here.

A wrong order is an AssertionError: reading or moving a free row, filling one in use, reading beyond a length, segments
of other buffers, a run whose past_lengths are not those of its rows, a graph that changes earlier tokens or writes
outside its rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import HostArray, RowBinding, Runnable, Segment, StateBuffers
from qwonnx.runtime.cache.host_buffers import HostBinding
from qwonnx.runtime.cache.rows import RowMove, is_growing, row_bytes, row_shape


class StrictSegment:
    """Bytes of its buffers, which only these can read."""

    def __init__(self, owner: StrictBuffers, num_tokens: int, arrays: dict[str, HostArray]) -> None:
        self.num_tokens = num_tokens
        self.num_bytes = sum(array.nbytes for array in arrays.values())
        self.__owner, self.__arrays = owner, arrays

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a segment is no array: its buffers alone know where it lies")

    def opened_by(self, buffers: StrictBuffers) -> dict[str, HostArray]:
        """Its arrays, for the buffers that made it."""
        assert buffers is self.__owner, "a segment of other buffers"
        return self.__arrays


@dataclass(slots=True)
class _Row:
    """One row of the vault. length is None while it is free; it is undefined after a run that failed."""

    arrays: dict[str, HostArray]
    length: int | None = None
    is_undefined: bool = False


class StrictBuffers(StateBuffers):
    """Rows in a vault.

    Args:
        states, num_rows, max_model_len: as of HostBuffers.

    Attributes:
        accesses: the number of calls of each operation; "run" counts runs that began.
    """

    def __init__(self, states: Sequence[StateSpec], num_rows: int, max_model_len: int) -> None:
        self.reserved_bytes = num_rows * sum(row_bytes(spec, max_model_len) for spec in states)
        self.accesses: Counter[str] = Counter()
        self._states, self._num_rows, self._max_model_len = tuple(states), num_rows, max_model_len
        self._growing = [spec.past for spec in states if is_growing(spec)]
        self._fixed = [spec.past for spec in states if not is_growing(spec)]
        self._vault = [self._poisoned_row() for _ in range(num_rows)]
        self._window = {
            spec.past: _poison((num_rows, *row_shape(spec, max_model_len)), np.dtype(spec.dtype)) for spec in states
        }
        self._is_running = False

    def clear(self, row: int) -> None:
        self._enter("clear")
        self._take(row, 0)
        for name in self._fixed:
            self._vault[row].arrays[name][...] = 0

    def new_host_array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> HostArray:
        return np.zeros(tuple(shape), dtype)

    def bind(self, io: Any, first_row: int, num_rows: int) -> RowBinding:
        self._enter("bind")
        assert 0 <= first_row < first_row + num_rows <= self._num_rows, "rows that there are not"
        binding = HostBinding(io)
        for spec in self._states:
            rows = self._window[spec.past][first_row : first_row + num_rows]
            binding.bind_input(spec.past, rows)
            binding.bind_output(spec.present, rows)
        return _StrictBinding(self, binding, range(first_row, first_row + num_rows))

    def copy_out(self, row: int, start: int, end: int) -> Segment:
        self._enter("copy_out")
        held = self._in_use(row)
        assert not held.is_undefined, f"row {row} holds nothing that is defined"
        assert 0 <= start < end == held.length, f"tokens {start} to {end} of a row that holds {held.length}"
        arrays = {name: held.arrays[name][:, start:end].copy() for name in self._growing}
        return StrictSegment(self, end - start, arrays | {name: held.arrays[name].copy() for name in self._fixed})

    def restore(self, row: int, segments: Sequence[Segment]) -> None:
        self._enter("restore")
        opened = [self._opened(segment) for segment in segments]
        self._take(row, sum(segment.num_tokens for segment in segments))
        start = 0
        for segment, arrays in zip(segments, opened, strict=True):
            end = start + segment.num_tokens
            for name in self._growing:
                self._vault[row].arrays[name][:, start:end] = arrays[name]
            start = end
        for name in self._fixed:
            self._vault[row].arrays[name][...] = opened[-1][name]

    def move(self, move: RowMove) -> None:
        self._enter("move")
        held = self._in_use(move.source)
        assert self._vault[move.target].length is None, f"row {move.target} is in use"
        assert held.length == move.num_tokens, f"{move} of a row that holds {held.length}"
        self._vault[move.source], self._vault[move.target] = self._poisoned_row(), held

    def release(self, row: int) -> None:
        self._enter("release")
        self._in_use(row)
        self._vault[row] = self._poisoned_row()

    def discard(self, row: int, start: int, end: int) -> None:
        self._enter("discard")
        assert (self._vault[row].length or 0) <= start <= end <= self._max_model_len, "tokens that a sequence has"

    def discard_states(self, row: int) -> None:
        self._enter("discard_states")
        assert self._vault[row].length is None, f"row {row} is in use"

    def to_host(self, segments: Sequence[Segment]) -> Iterator[memoryview]:
        self.accesses["to_host"] += 1  # also while a graph runs
        opened = [self._opened(segment) for segment in segments]
        for spec in self._states:
            pieces = [arrays[spec.past] for arrays in opened]
            whole = np.concatenate(pieces, axis=1) if is_growing(spec) else pieces[-1]
            yield memoryview(whole.tobytes())

    def from_host(self, num_tokens: int, parts: Sequence[memoryview]) -> Segment:
        self._enter("from_host")
        assert 0 < num_tokens <= self._max_model_len, f"a segment of {num_tokens} tokens"
        arrays = {
            spec.past: np.frombuffer(bytes(part), spec.dtype).reshape(row_shape(spec, num_tokens))
            for spec, part in zip(self._states, parts, strict=True)
        }
        return StrictSegment(self, num_tokens, arrays)

    def load(self, rows: range, past_lengths: Sequence[int], num_tokens: int) -> None:
        """Before a run: copy the binding's rows into the window."""
        self._enter("run")
        for row, past in zip(rows, past_lengths, strict=True):
            held = self._in_use(row)
            assert not held.is_undefined, f"row {row} holds nothing that is defined"
            assert held.length == past, f"row {row} holds {held.length} tokens, and the graph is told {past}"
            assert past + num_tokens <= self._max_model_len, f"row {row} has no room for {num_tokens} more"
        self._is_running = True
        for row in rows:
            self._vault[row].is_undefined = True  # until the run has succeeded
            for name, window in self._window.items():
                window[row] = self._vault[row].arrays[name]

    def store(self, rows: range, num_tokens: int) -> None:
        """After a successful run: copy the window into the rows."""
        for row in rows:
            held = self._vault[row]
            assert held.length is not None
            end = held.length + num_tokens
            for name in self._growing:
                written, before = self._window[name][row], held.arrays[name]
                past = slice(None), slice(held.length)
                assert _bytes(written[past]) == _bytes(before[past]), f"the past of row {row} was changed in {name}"
                assert _is_poison(written[:, end:]), f"tokens behind the step's were written to row {row} of {name}"
            for name, window in self._window.items():
                held.arrays[name][...] = window[row]
            held.length, held.is_undefined = end, False

    def close_window(self, rows: range) -> None:
        """After any run: check that only the run's rows were changed, and poison the window."""
        self._is_running = False
        for name, window in self._window.items():
            window[rows.start : rows.stop] = _poison_of(window.dtype)
            assert _is_poison(window), f"a row beside {rows} was written in {name}"

    def _enter(self, operation: str) -> None:
        assert not self._is_running, f"{operation} while a graph runs"
        self.accesses[operation] += 1

    def _take(self, row: int, num_tokens: int) -> None:
        assert self._vault[row].length is None, f"row {row} is in use"
        assert num_tokens <= self._max_model_len, f"row {row} has no room for {num_tokens} tokens"
        self._vault[row].length = num_tokens

    def _in_use(self, row: int) -> _Row:
        assert self._vault[row].length is not None, f"row {row} is free"
        return self._vault[row]

    def _opened(self, segment: Segment) -> dict[str, HostArray]:
        assert isinstance(segment, StrictSegment), "a segment of other buffers"
        return segment.opened_by(self)

    def _poisoned_row(self) -> _Row:
        return _Row(
            {spec.past: _poison(row_shape(spec, self._max_model_len), np.dtype(spec.dtype)) for spec in self._states}
        )


@dataclass(slots=True)
class _StrictBinding(RowBinding):
    """Rows of the window, and further arrays for the step's other inputs and outputs."""

    buffers: StrictBuffers
    bound: HostBinding
    rows: range
    inputs: dict[str, tuple[HostArray, HostArray]] = field(default_factory=dict)  # the host's array, and the graph's
    outputs: dict[str, tuple[HostArray, HostArray]] = field(default_factory=dict)
    on_demand: dict[str, HostArray] = field(default_factory=dict)
    kept: dict[str, HostArray] = field(default_factory=dict)  # on-demand outputs as the last run left them

    def bind_input(self, name: str, array: HostArray) -> None:
        self.inputs[name] = array, _poison(array.shape, array.dtype)
        self.bound.bind_input(name, self.inputs[name][1])

    def bind_output(self, name: str, array: HostArray, *, on_demand: bool = False) -> None:
        self.outputs[name] = array, _poison(array.shape, array.dtype)
        self.bound.bind_output(name, self.outputs[name][1])
        if on_demand:
            self.on_demand[name] = array

    def fetch(self, array: HostArray) -> None:
        name = next(name for name, whole in self.on_demand.items() if np.shares_memory(whole, array))
        start = (array.ctypes.data - self.on_demand[name].ctypes.data) // array.itemsize
        array.reshape(-1)[...] = self.kept[name].reshape(-1)[start : start + array.size]

    def run(self, session: Runnable, *, reads_outputs: bool = True) -> None:
        num_tokens, past_lengths = self.inputs["input_ids"][0].shape[1], self.inputs["past_lengths"][0].tolist()
        self.buffers.load(self.rows, past_lengths, num_tokens)
        try:
            for host, graphs in self.inputs.values():
                graphs[...] = host
            for host, _ in self.outputs.values():
                host[...] = _poison_of(host.dtype)
            self.bound.run(session)
            self.buffers.store(self.rows, num_tokens)
            for name, (host, graphs) in self.outputs.items():
                if name in self.on_demand:
                    self.kept[name] = graphs.copy()
                else:
                    host[...] = graphs
        finally:
            self.buffers.close_window(self.rows)
            for _, graphs in (*self.inputs.values(), *self.outputs.values()):
                graphs[...] = _poison_of(graphs.dtype)


def _poison_of(dtype: np.dtype[Any]) -> HostArray:
    return np.frombuffer(b"\xff" * dtype.itemsize, dtype)


def _poison(shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
    return np.full(shape, _poison_of(dtype), dtype)


def _is_poison(array: HostArray) -> bool:
    return bool((np.frombuffer(_bytes(array), np.uint8) == 0xFF).all())


def _bytes(array: HostArray) -> bytes:
    return np.ascontiguousarray(array).tobytes()
