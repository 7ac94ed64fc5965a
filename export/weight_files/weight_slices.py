"""Cuts stored weights into slices: pieces of work whose bytes follow each other in a shard's files.

A slice has as many values as a cut allows: whole rows if a row has fewer values, else columns of one row. It can begin
wherever an interrupted export ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwonnx.export.checkpoint.row_reader import RowReader
from qwonnx.export.quantization.recipe import FLOAT32, WeightStorage
from qwonnx.export.weight_files.external_data import ShardPrefix
from qwonnx.export.weight_files.layout import ShardLayout, StoredSize
from qwonnx.export.weight_files.memory_budget import SLICE_ALIGNMENT


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """A stored weight, and the readers of its consecutive parts in the checkpoint."""

    storage: WeightStorage
    readers: tuple[RowReader, ...]

    @property
    def size(self) -> StoredSize:
        num_rows = sum(reader.num_rows for reader in self.readers)
        return StoredSize(self.storage.stream_bytes(num_rows, self.readers[0].num_columns))

    @property
    def num_source_bytes(self) -> int:
        return sum(reader.num_source_bytes for reader in self.readers)

    def making_bytes(self, max_values: int) -> int:
        """The most memory of a slice while it is made, if a slice of floats has at most `max_values` values."""
        return max(
            making_bytes(reader, self.storage, *_largest_slice(reader, self.storage, max_values))
            for reader in self.readers
        )


@dataclass(frozen=True, slots=True)
class WeightSlice:
    """Some rows of one part of a stored weight, or some columns of one row."""

    index: int  # of the weight in its shard
    storage: WeightStorage
    reader: RowReader
    start: int
    num_rows: int
    first_column: int
    num_columns: int

    @property
    def num_values(self) -> int:
        return self.num_rows * self.num_columns

    @property
    def making_bytes(self) -> int:
        """Memory of the slice while it is read and quantised, with codes and scales."""
        return making_bytes(self.reader, self.storage, self.num_rows, self.num_columns)

    @property
    def waiting_bytes(self) -> int:
        """Memory of the slice while it waits to be written."""
        return sum(self.storage.stream_bytes(self.num_rows, self.num_columns))

    @property
    def num_source_bytes(self) -> int:
        """Its share of the part's bytes; the shares of all slices add up exactly."""
        first = self.start * self.reader.num_columns + self.first_column
        return _source_bytes(self.reader, first + self.num_values) - _source_bytes(self.reader, first)


def keeps_codes(reader: RowReader, storage: WeightStorage) -> bool:
    """Whether the checkpoint's own codes are kept, unchanged."""
    return storage.is_quantized and reader.codes is not None


def making_bytes(reader: RowReader, storage: WeightStorage, num_rows: int, num_columns: int) -> int:
    """Memory of a slice that is made: source bytes, float32 values, codes, scales and zero points."""
    num_values = num_rows * num_columns
    written = sum(storage.stream_bytes(num_rows, num_columns))
    if keeps_codes(reader, storage):
        return reader.read_bytes(num_values, as_codes=True) + 2 * written  # each part is copied to its place
    read = reader.read_bytes(num_values)
    if storage.is_quantized:
        return read + 4 * num_values + written
    # float32 values are written themselves.
    return read + 4 * num_values + (written if storage != FLOAT32 else 0)


def _needs_whole_rows(reader: RowReader, storage: WeightStorage) -> bool:
    """Codes are read by rows, and every row of zero points starts a byte."""
    return reader.codes is not None or storage.has_zero_points


def _largest_slice(reader: RowReader, storage: WeightStorage, max_values: int) -> tuple[int, int]:
    """Rows and columns of the largest slice of a part."""
    if reader.num_columns > max_values and not _needs_whole_rows(reader, storage):
        return 1, max_values
    return min(reader.rows_at_once(max_values), reader.num_rows), reader.num_columns


class ShardSlices:
    """The slices of a shard that are still to be written.

    Args:
        plans: of all weights.
        layout: of the shard.
        prefix: the first bytes of its files, which are written.
        max_values: of a slice; a multiple of SLICE_ALIGNMENT.
    """

    def __init__(self, plans: Sequence[WeightPlan], layout: ShardLayout, prefix: ShardPrefix, max_values: int) -> None:
        assert max_values % SLICE_ALIGNMENT == 0, "blocks would be cut"
        self._plans = plans[layout.first : layout.first + len(layout.places)]
        self._max_values = max_values
        self._done: list[int] = []  # values of each weight
        for plan, place in zip(self._plans, layout.places, strict=True):
            codes = place.tensors[0]
            done_bytes = min(max(prefix.files[0].size - codes.offset, 0), codes.num_bytes)
            self._done.append(done_bytes * 8 // plan.storage.bits)

    def __iter__(self) -> Iterator[WeightSlice]:
        for index, (plan, done) in enumerate(zip(self._plans, self._done, strict=True)):
            for reader in plan.readers:
                first = min(done, reader.num_values)
                done -= first
                yield from self._cut(index, plan.storage, reader, first)

    @property
    def num_done_source_bytes(self) -> int:
        """Bytes of the checkpoint that need not be read again."""
        num_bytes = 0
        for plan, done in zip(self._plans, self._done, strict=True):
            for reader in plan.readers:
                first = min(done, reader.num_values)
                done -= first
                num_bytes += _source_bytes(reader, first)
        return num_bytes

    def _cut(self, index: int, storage: WeightStorage, reader: RowReader, value: int) -> Iterator[WeightSlice]:
        """Slices of one part, from one of its values."""
        most_rows, most_columns = _largest_slice(reader, storage, self._max_values)
        while value < reader.num_values:
            row, column = divmod(value, reader.num_columns)
            if column or most_columns < reader.num_columns:
                num_rows, num_columns = 1, min(reader.num_columns - column, self._max_values)
            else:
                num_rows, num_columns = min(reader.num_rows - row, most_rows), reader.num_columns
            yield WeightSlice(index, storage, reader, row, num_rows, column, num_columns)
            value += num_rows * num_columns


def _source_bytes(reader: RowReader, num_values: int) -> int:
    """Bytes in the checkpoint of the first values of a part."""
    return reader.num_source_bytes * num_values // reader.num_values
