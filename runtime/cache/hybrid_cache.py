"""The hybrid cache: accounting of running sequences' states, one row each, in buffers that the graph updates.

Keys and values have room for max_model_len tokens per row and are never cleared: a graph does not use tokens past a
row's length. Convolution and recurrent states have a fixed size and start from zeros. Rows 0..n-1 hold the n running
sequences, so a step binds consecutive rows without a copy; when a sequence leaves, a move fills its row. A spare row
makes it possible to exchange two rows. A freed row keeps its memory until other rows need the bytes.

The cache knows only lengths and bytes of the sequences; the scheduler decides the row of each one. The buffers know the
memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import BuffersFactory, Segment
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.cache.rows import CacheSnapshot, RowMove, row_cost
from qwonnx.runtime.errors import SettingsError


class HybridCache:
    """Rows for running sequences, and one spare row.

    Args:
        states: the manifest's states.
        max_num_seqs: rows for running sequences.
        max_model_len: tokens a row has room for.
        max_bytes: memory limit. The scheduler keeps the rows in use within it; memory of freed rows is given back
            before other rows take it. While two rows are exchanged, the spare row may exceed the limit.
        make_buffers: makes the memory of the rows.

    Attributes:
        buffers: the memory of the rows. Only the cache calls operations that change a row's length or take memory.

    Raises:
        SettingsError: the buffers do not fit into the address space, or the device's memory.
    """

    def __init__(
        self,
        states: Sequence[StateSpec],
        max_num_seqs: int,
        max_model_len: int,
        max_bytes: int = 1 << 62,
        make_buffers: BuffersFactory = HostBuffers,
    ) -> None:
        num_rows = max_num_seqs + 1
        self.max_model_len = max_model_len
        self._max_bytes = max_bytes
        self._cost = row_cost(states)
        try:
            self.buffers = make_buffers(states, num_rows, max_model_len)
        except MemoryError as error:
            raise SettingsError(
                f"no room for {max_num_seqs} sequences of {max_model_len} tokens: lower max_num_seqs or max_model_len"
            ) from error
        self._lengths: list[int | None] = [None] * num_rows
        self._touched: list[int | None] = [None] * num_rows  # tokens per row whose keys and values take memory

    def begin(self, row: int) -> None:
        """Take a free row for a new sequence."""
        assert self._lengths[row] is None, f"row {row} is in use"
        self.buffers.clear(row)
        self._set_length(row, 0)

    def is_free(self, row: int) -> bool:
        """Whether no sequence has the row."""
        return self._lengths[row] is None

    def copy_out(self, row: int, start: int) -> Segment:
        """Copy the content of a row in use, from position `start` on."""
        length = self._lengths[row]
        assert length is not None, f"row {row} is free"
        assert start < length, f"row {row} holds {length} tokens, none from {start} on"
        return self.buffers.copy_out(row, start, length)

    def restore(self, row: int, segments: Sequence[Segment]) -> None:
        """Take a free row and fill it with the beginning of a sequence, from consecutive segments."""
        assert self._lengths[row] is None, f"row {row} is in use"
        num_tokens = sum(segment.num_tokens for segment in segments)
        self.prepare(num_tokens)
        self.buffers.restore(row, segments)
        self._set_length(row, num_tokens)

    def segment_bytes(self, num_tokens: int) -> int:
        """Bytes of a segment of num_tokens tokens."""
        return self._cost.bytes_of(num_tokens)

    def advance(self, row: int, num_tokens: int) -> None:
        """Account for tokens that a step has added to a row."""
        length = self._lengths[row]
        assert length is not None, f"row {row} is free"
        assert length + num_tokens <= self.max_model_len, f"row {row} has no room for {num_tokens} more"
        self._set_length(row, length + num_tokens)

    def prepare(self, num_tokens: int) -> None:
        """Make room for num_tokens new tokens: give back memory that rows no longer use, if both do not fit."""
        if self._bytes_of(self._touched) + num_tokens * self._cost.bytes_per_token <= self._max_bytes:
            return
        for row, touched in enumerate(self._touched):
            length = self._lengths[row]
            if touched is not None and touched != length:
                self.buffers.discard(row, length or 0, touched)
                if length is None:
                    self.buffers.discard_states(row)
                self._touched[row] = length

    def release(self, row: int) -> None:
        """Free a row; its content stays until others need the memory. A row that was never begun is already free."""
        if self._lengths[row] is not None:
            self.buffers.release(row)
            self._lengths[row] = None

    def move(self, move: RowMove) -> None:
        """Carry a sequence from one row to a free one."""
        assert self._lengths[move.target] is None, f"row {move.target} is in use"
        if self._lengths[move.source] is not None:
            self.buffers.move(move)
            self._set_length(move.target, move.num_tokens)
        self._lengths[move.source] = None

    def snapshot(self) -> CacheSnapshot:
        return CacheSnapshot(
            row_lengths=tuple(self._lengths),
            max_model_len=self.max_model_len,
            reserved_bytes=self.buffers.reserved_bytes,
            used_bytes=self._bytes_of(self._lengths),
            touched_bytes=self._bytes_of(self._touched),
            max_bytes=self._max_bytes,
        )

    def _set_length(self, row: int, num_tokens: int) -> None:
        self._lengths[row] = num_tokens
        self._touched[row] = max(self._touched[row] or 0, num_tokens)

    def _bytes_of(self, lengths: Sequence[int | None]) -> int:
        return sum(self._cost.bytes_of(length) for length in lengths if length is not None)
