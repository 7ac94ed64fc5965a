"""The hybrid cache: every state of every running sequence, one row each, in buffers that the graph updates in place.

Keys and values (KVCache) have room for max_model_len tokens a row and are never cleared, since nothing reads past a
row's length. Convolution and recurrent states (StatePool) have a fixed size and start from zeros. The buffers are
reserved whole and cost memory page by page as they are touched; pages that rows left behind go back to the system when
others need their bytes. Rows 0..n-1 hold the n running sequences, so a step
binds consecutive rows without a copy; who leaves is replaced by a move. One spare row makes exchanging two possible.

The cache knows lengths and nothing else of the sequences; the scheduler decides who has which row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.pages import PagedArray
from qwonnx.runtime.errors import SettingsError

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

    reserved_bytes is address space; used_bytes is what the rows in use need of it; touched_bytes is what has been
    written since it was last given back, and takes memory; max_bytes is what both may be.
    """

    row_lengths: tuple[int | None, ...]
    max_model_len: int
    reserved_bytes: int
    used_bytes: int
    touched_bytes: int
    max_bytes: int


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
        self._pages = {spec.past: _reserve(spec, num_rows, max_model_len) for spec in specs}
        self.buffers = {name: pages.array for name, pages in self._pages.items()}
        self.bytes_per_token: int = sum(b[0].nbytes for b in self.buffers.values()) // max_model_len

    def copy(self, move: RowMove) -> None:
        for buffer in self.buffers.values():
            buffer[move.target, :, : move.num_tokens] = buffer[move.source, :, : move.num_tokens]

    def discard(self, row: int, start: int, end: int) -> None:
        """Give back the memory of a row's tokens from start to end."""
        for pages in self._pages.values():
            head_bytes, token_bytes = pages.array.strides[1:3]
            for head in range(pages.array.shape[1]):
                first = row * pages.array.strides[0] + head * head_bytes
                pages.discard(first + start * token_bytes, first + end * token_bytes, first + head_bytes)


class StatePool:
    """Convolution and recurrent states of the linear-attention layers, of a fixed size a row."""

    def __init__(self, specs: Sequence[StateSpec], num_rows: int) -> None:
        self._pages = {spec.past: _reserve(spec, num_rows, max_model_len=0) for spec in specs}
        self.buffers = {name: pages.array for name, pages in self._pages.items()}
        self.bytes_per_row: int = sum(b[0].nbytes for b in self.buffers.values())

    def clear(self, row: int) -> None:
        for buffer in self.buffers.values():
            buffer[row] = 0

    def copy(self, move: RowMove) -> None:
        for buffer in self.buffers.values():
            buffer[move.target] = buffer[move.source]

    def discard(self, row: int) -> None:
        """Give back the memory of a row."""
        for pages in self._pages.values():
            row_bytes = pages.array.strides[0]
            pages.discard(row * row_bytes, (row + 1) * row_bytes, (row + 1) * row_bytes)


class HybridCache:
    """Both, under one account of rows.

    Args:
        states: the manifest's states.
        max_num_seqs: rows for running sequences.
        max_model_len: tokens a row has room for.
        max_bytes: of memory. The scheduler sees to it that the rows in use need no more; what ended ones left goes
            before others take it. While two rows change places, the spare one may take some beside it.

    Raises:
        SettingsError: the buffers do not fit into the address space the system grants.
    """

    def __init__(
        self, states: Sequence[StateSpec], max_num_seqs: int, max_model_len: int, max_bytes: int = 1 << 62
    ) -> None:
        num_rows = max_num_seqs + 1
        self._max_bytes = max_bytes
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
        self._touched: list[int | None] = [None] * num_rows  # tokens whose keys and values take memory, as _lengths

    def begin(self, row: int) -> None:
        """Take a free row for a new sequence."""
        assert self._lengths[row] is None, f"row {row} is in use"
        self.pool.clear(row)
        self._set_length(row, 0)

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
        self.prepare(sum(segment.num_tokens for segment in segments))
        start = 0
        for segment in segments:
            end = start + segment.num_tokens
            for name, array in segment.keys_and_values.items():
                self.kv.buffers[name][row, :, start:end] = array
            start = end
        for name, array in segments[-1].states.items():
            self.pool.buffers[name][row] = array
        self._set_length(row, start)

    def segment_bytes(self, num_tokens: int) -> int:
        """Bytes of a segment of so many tokens."""
        return self.pool.bytes_per_row + num_tokens * self.kv.bytes_per_token

    def advance(self, row: int, num_tokens: int) -> None:
        """Account for tokens that a step has added to a row."""
        length = self._lengths[row]
        assert length is not None, f"row {row} is free"
        assert length + num_tokens <= self.max_model_len, f"row {row} has no room for {num_tokens} more"
        self._set_length(row, length + num_tokens)

    def prepare(self, num_tokens: int) -> None:
        """Before so many tokens are written: give back what ended rows left, if there are not bytes for both."""
        if self._bytes_of(self._touched) + num_tokens * self.kv.bytes_per_token <= self._max_bytes:
            return
        for row, touched in enumerate(self._touched):
            length = self._lengths[row]
            if touched is not None and touched != length:
                self.kv.discard(row, length or 0, touched)
                if length is None:
                    self.pool.discard(row)
                self._touched[row] = length

    def release(self, row: int) -> None:
        """Free a row, whatever its sequence left in it; a row that was never begun is free already."""
        self._lengths[row] = None

    def move(self, move: RowMove) -> None:
        """Carry a sequence from one row to a free one."""
        assert self._lengths[move.target] is None, f"row {move.target} is in use"
        if self._lengths[move.source] is not None:
            self.kv.copy(move)
            self.pool.copy(move)
            self._set_length(move.target, move.num_tokens)
        self._lengths[move.source] = None

    def snapshot(self) -> CacheSnapshot:
        return CacheSnapshot(
            row_lengths=tuple(self._lengths),
            max_model_len=self.max_model_len,
            reserved_bytes=sum(buffer.nbytes for buffer in self.buffers.values()),
            used_bytes=self._bytes_of(self._lengths),
            touched_bytes=self._bytes_of(self._touched),
            max_bytes=self._max_bytes,
        )

    def _set_length(self, row: int, num_tokens: int) -> None:
        self._lengths[row] = num_tokens
        self._touched[row] = max(self._touched[row] or 0, num_tokens)

    def _bytes_of(self, lengths: Sequence[int | None]) -> int:
        return sum(self.segment_bytes(length) for length in lengths if length is not None)


def row_pointer(buffer: StateArray, row: int) -> int:
    """Address of a row, where a step's binding of it and those after it begins."""
    return int(buffer.ctypes.data) + row * buffer.strides[0]


def _reserve(spec: StateSpec, num_rows: int, max_model_len: int) -> PagedArray:
    sizes = {"batch": num_rows, "max_model_len": max_model_len}
    shape = tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)
    return PagedArray(shape, np.dtype(spec.dtype))
