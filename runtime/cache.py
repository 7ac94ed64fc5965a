"""The hybrid cache: every state of every running sequence, one row each, in buffers that the graph updates in place.

Keys and values (KVCache) have room for max_model_len tokens a row and are never cleared, since nothing reads past a
row's length. Convolution and recurrent states (StatePool) have a fixed size and start from zeros. The buffers are
reserved whole and cost memory page by page as they are touched. Rows 0..n-1 hold the n running sequences, so a step
binds consecutive rows without a copy; who leaves is replaced by a move. One spare row makes exchanging two possible.

The cache knows lengths and nothing else of the sequences; the scheduler decides who has which row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwonnx.export.artifact import StateSpec
from qwonnx.runtime.errors import SettingsError

_ALIGNMENT = 64  # bytes; a vector register, a cache line

StateArray = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class RowMove:
    """Row `source`, holding a sequence of num_tokens, becomes row `target`; `source` is free afterwards."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """The accounting at one moment: tokens in each row (None for a free one), and bytes.

    reserved_bytes is address space; used_bytes is what the rows in use need of it.
    """

    row_lengths: tuple[int | None, ...]
    max_model_len: int
    reserved_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class RowSegment:
    """Copies of what a row holds: keys and values of num_tokens, and the states after the last of them."""

    num_tokens: int
    keys_and_values: dict[str, StateArray]  # [num_key_value_heads, num_tokens, head_dim] each
    states: dict[str, StateArray]

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for part in (self.keys_and_values, self.states) for array in part.values())


class KVCache:
    """Keys and values of the full-attention layers, `[rows, num_key_value_heads, max_model_len, head_dim]` each."""

    def __init__(self, specs: Sequence[StateSpec], num_rows: int, max_model_len: int) -> None:
        self.buffers = {spec.past: _reserve(spec, num_rows, max_model_len) for spec in specs}
        self.bytes_per_token: int = sum(b[0].nbytes for b in self.buffers.values()) // max_model_len

    def copy(self, move: RowMove) -> None:
        for buffer in self.buffers.values():
            buffer[move.target, :, : move.num_tokens] = buffer[move.source, :, : move.num_tokens]


class StatePool:
    """Convolution and recurrent states of the linear-attention layers, of a fixed size a row."""

    def __init__(self, specs: Sequence[StateSpec], num_rows: int) -> None:
        self.buffers = {spec.past: _reserve(spec, num_rows, max_model_len=0) for spec in specs}
        self.bytes_per_row: int = sum(b[0].nbytes for b in self.buffers.values())

    def clear(self, row: int) -> None:
        for buffer in self.buffers.values():
            buffer[row] = 0

    def copy(self, move: RowMove) -> None:
        for buffer in self.buffers.values():
            buffer[move.target] = buffer[move.source]


class HybridCache:
    """Both, under one account of rows.

    Args:
        states: the manifest's states.
        max_num_seqs: rows for running sequences.
        max_model_len: tokens a row has room for.

    Raises:
        SettingsError: the buffers do not fit into the address space the system grants.
    """

    def __init__(self, states: Sequence[StateSpec], max_num_seqs: int, max_model_len: int) -> None:
        num_rows = max_num_seqs + 1
        self.spare_row = max_num_seqs
        self.max_model_len = max_model_len
        keys_and_values = [spec for spec in states if spec.kind in ("key", "value")]
        fixed = [spec for spec in states if spec.kind not in ("key", "value")]
        try:
            self.kv = KVCache(keys_and_values, num_rows, max_model_len)
            self.pool = StatePool(fixed, num_rows)
        except MemoryError as error:
            raise SettingsError(
                f"no room for {max_num_seqs} sequences of {max_model_len} tokens: lower max_num_seqs or max_model_len"
            ) from error
        self.buffers = self.kv.buffers | self.pool.buffers
        self._lengths: list[int | None] = [None] * num_rows

    def begin(self, row: int) -> None:
        """Take a free row for a new sequence."""
        assert self._lengths[row] is None, f"row {row} is in use"
        self.pool.clear(row)
        self._lengths[row] = 0

    def copy_out(self, row: int, start: int) -> RowSegment:
        """Copies of what a row in use holds from position `start` on."""
        length = self._lengths[row]
        assert length is not None, f"row {row} is free"
        assert start < length, f"row {row} holds {length} tokens, none from {start} on"
        return RowSegment(
            num_tokens=length - start,
            keys_and_values={name: buffer[row, :, start:length].copy() for name, buffer in self.kv.buffers.items()},
            states={name: buffer[row].copy() for name, buffer in self.pool.buffers.items()},
        )

    def restore(self, row: int, segments: Sequence[RowSegment]) -> None:
        """Take a free row for a sequence whose beginning these segments hold, one after the other."""
        assert self._lengths[row] is None, f"row {row} is in use"
        start = 0
        for segment in segments:
            end = start + segment.num_tokens
            for name, array in segment.keys_and_values.items():
                self.kv.buffers[name][row, :, start:end] = array
            start = end
        for name, array in segments[-1].states.items():
            self.pool.buffers[name][row] = array
        self._lengths[row] = start

    def segment_bytes(self, num_tokens: int) -> int:
        """Bytes of a segment of so many tokens."""
        return self.pool.bytes_per_row + num_tokens * self.kv.bytes_per_token

    def advance(self, row: int, num_tokens: int) -> None:
        """Account for tokens that a step has added to a row."""
        length = self._lengths[row]
        assert length is not None, f"row {row} is free"
        assert length + num_tokens <= self.max_model_len, f"row {row} has no room for {num_tokens} more"
        self._lengths[row] = length + num_tokens

    def release(self, row: int) -> None:
        """Free a row, whatever its sequence left in it; a row that was never begun is free already."""
        self._lengths[row] = None

    def move(self, move: RowMove) -> None:
        """Carry a sequence from one row to a free one."""
        assert self._lengths[move.target] is None, f"row {move.target} is in use"
        if self._lengths[move.source] is not None:
            self.kv.copy(move)
            self.pool.copy(move)
        self._lengths[move.target], self._lengths[move.source] = self._lengths[move.source], None

    def snapshot(self) -> CacheSnapshot:
        used = [length for length in self._lengths if length is not None]
        return CacheSnapshot(
            row_lengths=tuple(self._lengths),
            max_model_len=self.max_model_len,
            reserved_bytes=sum(buffer.nbytes for buffer in self.buffers.values()),
            used_bytes=len(used) * self.pool.bytes_per_row + sum(used) * self.kv.bytes_per_token,
        )


def row_pointer(buffer: StateArray, row: int) -> int:
    """Address of a row, where a step's binding of it and those after it begins."""
    return int(buffer.ctypes.data) + row * buffer.strides[0]


def _reserve(spec: StateSpec, num_rows: int, max_model_len: int) -> StateArray:
    """Zeros on untouched pages, aligned: numpy's own allocation starts 16 bytes into a page."""
    sizes = {"batch": num_rows, "max_model_len": max_model_len}
    shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
    dtype = np.dtype(spec.dtype)
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes >= 1 << 47:  # beyond a process's addresses, and perhaps beyond numpy's integers
        raise MemoryError
    raw = np.zeros(num_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)
