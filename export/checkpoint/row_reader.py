"""Reads rows of one weight, in the exporter's order, from the tensors that store it.

Values are read in their stored type and computed in float32; a quantised weight can also be read as codes. Reads take a
few rows at a time and are thread-safe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from qwonnx.export.checkpoint.formats.codes import CodedWeight, CodeRows, StoredCodes
from qwonnx.export.checkpoint.formats.stored_weights import PlainWeight, StoredWeight

if TYPE_CHECKING:
    import torch


class Transform(Enum):
    """The transform of stored values, in float32."""

    NONE = "as stored"
    ADD_ONE = "1 + w"
    NEGATIVE_EXP = "-exp(w)"

    def apply(self, values: torch.Tensor) -> None:
        """In place."""
        if self is Transform.ADD_ONE:
            values.add_(1.0)
        elif self is Transform.NEGATIVE_EXP:
            values.exp_().neg_()


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of one stored weight, taken as a matrix."""

    weight: StoredWeight
    start: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """`num_rows` rows of a stored weight from `start`, and their place among the requested rows."""

    weight: StoredWeight
    start: int
    num_rows: int
    target: slice


@dataclass(frozen=True, slots=True)
class RowReader:
    """One weight as a matrix [num_rows, num_columns]: all axes but the last are flattened, a vector is one row.

    The rows are cut into groups of equal size (an expert's rows, or all rows). Row r of a group is row r // k of the
    group's lane r % k, where k is the number of lanes: two for gate and up, else one.

    stored_codes has the formats in which the checkpoint stores the weight, None for floats. It has more than one if the
    checkpoint stores experts differently.
    """

    name: str
    num_rows: int
    num_columns: int
    num_source_bytes: int
    stored_codes: frozenset[StoredCodes | None]
    _groups: tuple[tuple[Rows, ...], ...]
    _transform: Transform
    _is_transposed: bool = False  # a few rows of a matrix take one small read per column, and all rows take one read
    _reading_bytes: int = 0
    _reading_bytes_per_value: int = 0
    _repacking_bytes: int = 0  # for each value that is read as a code
    _unfilled: tuple[int, int] | None = None  # rows of a lane, and columns, that are not zeros; None: all

    @property
    def codes(self) -> StoredCodes | None:
        """The format of all the weight's codes; None if it is stored as floats or in several formats."""
        return next(iter(self.stored_codes)) if len(self.stored_codes) == 1 else None

    @property
    def is_bfloat16(self) -> bool:
        """Whether every value is a bfloat16, after its transform too."""
        weights = (rows.weight for lanes in self._groups for rows in lanes)
        return self._transform is Transform.NONE and all(
            isinstance(weight, PlainWeight) and weight.is_bfloat16 for weight in weights
        )

    @property
    def num_values(self) -> int:
        return self.num_rows * self.num_columns

    def read_bytes(self, num_values: int, *, as_codes: bool = False) -> int:
        """The most memory that reading `num_values` values takes, without the result.

        A read of transposed codes holds a copy in the stored order and one of its transpose.
        """
        stored = -(-self.num_source_bytes * num_values // self.num_values)
        stored *= 2 if self._is_transposed else 1
        if as_codes:
            return stored + self._repacking_bytes * num_values
        return stored + self._reading_bytes + self._reading_bytes_per_value * num_values

    def rows_at_once(self, num_values: int) -> int:
        """How many rows to read at a time, where `num_values` floats are a good amount.

        Transposed codes are read by whole groups if a group has at most 8 * `num_values` values (at 4 bits, as many
        bytes as `num_values` floats). Each expert of the published models has fewer.
        """
        if not self._is_transposed:
            return max(1, num_values // self.num_columns)
        rows, group_rows = max(1, 8 * num_values // self.num_columns), self._group_rows
        if rows >= group_rows:
            return rows - rows % group_rows
        return -(-group_rows // -(-group_rows // rows))  # the fewest slices of a group, of equal size

    def read(self, start: int, count: int, first_column: int = 0, num_columns: int | None = None) -> torch.Tensor:
        """Rows as float32 [count, num_columns], in a fresh buffer. Safe to call from several threads.

        Rows are read whole. A call for a single row may ask for some of its columns.

        Raises:
            CheckpointError: the checkpoint cannot be read any more.
        """
        import torch

        columns = self.num_columns - first_column if num_columns is None else num_columns
        assert columns == self.num_columns or (count == 1 and 0 <= first_column <= self.num_columns - columns)
        make = torch.empty if self._unfilled is None else torch.zeros
        values = make((count, columns), dtype=torch.float32)
        for piece in self._pieces(start, count):
            if columns == self.num_columns:
                stored = piece.weight.read(piece.start, piece.num_rows)
            else:
                assert self._unfilled is None, "columns of a row with zeros"
                stored = piece.weight.read_part(piece.start, first_column, columns)
            values[piece.target, : stored.shape[1]].copy_(stored)
        self._transform.apply(values)
        return values

    def as_stored(self) -> RowReader:
        """The same weight before its transform."""
        return dataclasses.replace(self, _transform=Transform.NONE)

    def blocks(self, num_rows: int, *, odd: bool) -> RowReader:
        """Every other block of so many rows, from the first or from the second on."""
        ((rows,),) = self._groups
        starts = range(rows.start + (num_rows if odd else 0), rows.start + self.num_rows, 2 * num_rows)
        groups = tuple((Rows(rows.weight, start),) for start in starts)
        return dataclasses.replace(
            self, num_rows=len(groups) * num_rows, num_source_bytes=self.num_source_bytes // 2, _groups=groups
        )

    def filled(self, num_rows: int, num_columns: int) -> RowReader:
        """The same weight with zeros: at the end of each lane, to num_rows in all, and of each row, to num_columns.

        Codes of the checkpoint are read as floats.
        """
        lane_rows = self._group_rows // len(self._groups[0])
        return dataclasses.replace(
            self,
            num_rows=num_rows,
            num_columns=num_columns,
            stored_codes=frozenset({None}),
            _unfilled=(lane_rows, self.num_columns),
        )

    def read_codes(self, start: int, count: int, block_size: int) -> CodeRows:
        """Rows of the checkpoint's own codes; only if `codes` is not None. Thread-safe.

        Raises:
            TensorFormatError: zero points contradict config.json.
            CheckpointError: the checkpoint cannot be read any more.
        """
        import torch

        assert self.codes is not None, self.name
        bits, num_blocks = self.codes.bits, self.num_columns // block_size
        rows = CodeRows(
            codes=torch.empty((count, self.num_columns * bits // 8), dtype=torch.uint8),
            scales=torch.empty((count, num_blocks)),
            zero_points=torch.empty((count, -(-num_blocks * bits // 8)), dtype=torch.uint8),
        )
        for piece in self._pieces(start, count):
            assert isinstance(piece.weight, CodedWeight)
            part = piece.weight.read_codes(piece.start, piece.num_rows, block_size)
            rows.codes[piece.target] = part.codes
            rows.scales[piece.target] = part.scales
            rows.zero_points[piece.target] = part.zero_points
        return rows

    @property
    def _group_rows(self) -> int:
        return self.num_rows // len(self._groups)

    def _pieces(self, start: int, count: int) -> Iterator[_Piece]:
        assert 0 <= start <= start + count <= self.num_rows, f"rows {start}+{count} of {self.name}"
        done = 0
        while done < count:
            group, first = divmod(start + done, self._group_rows)
            num_rows = min(count - done, self._group_rows - first)
            lanes = self._groups[group]
            for lane, rows in enumerate(lanes):
                # The lane's rows r with first <= r * len(lanes) + lane < first + num_rows.
                begin, end = (-(-(bound - lane) // len(lanes)) for bound in (first, first + num_rows))
                if self._unfilled is not None:
                    end = min(end, self._unfilled[0])
                if begin < end:
                    place = done + begin * len(lanes) + lane - first
                    target = slice(place, place + (end - begin - 1) * len(lanes) + 1, len(lanes))
                    yield _Piece(rows.weight, rows.start + begin, end - begin, target)
            done += num_rows
