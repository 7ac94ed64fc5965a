"""How an adapter changes a weight's rows, in float32, in place.

    LowRank        W + s L R, for consecutive rows; with DoRA's lengths m: m * (W + s L R) / |W + s L R| by rows
    ScaledColumns  m * (W + s L R) / |W + s L R| by columns: DoRA of an embedding, whose lengths are of its columns

Products are computed in tiles of rows that begin at fixed places, so a row's values do not depend on the rows that are
read with it: an export writes the same bytes whatever its slices are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from qwonnx.export.adapters.factors import Factor
from qwonnx.export.adapters.targets import Target

if TYPE_CHECKING:
    from torch import Tensor

_TILE_ROWS = 32
_FLOAT32_BYTES = 4
# Rows of an embedding that are read at a time for the lengths of its columns.
_NORM_ROWS = 256


class Change(Protocol):
    """Changes rows of one stored weight."""

    @property
    def reading_bytes(self) -> int:
        """The most memory that `apply` takes, for any number of rows."""
        ...

    def apply(self, values: Tensor, start: int) -> None:
        """Change rows start, start + 1, ... of the weight: float32 [count, num_columns], in place. Thread-safe."""
        ...


@dataclass(frozen=True, slots=True)
class LowRank:
    """A product of factors that is added to a target's rows.

    The target's first row is row target.row of the left factor, and of the magnitude.
    """

    left: Factor
    right: Factor
    scaling: float
    target: Target
    num_columns: int
    magnitude: str | None = None  # of a tensor with the lengths of rows: DoRA

    @property
    def reading_bytes(self) -> int:
        product = _FLOAT32_BYTES * _TILE_ROWS * self.num_columns
        return product + self.left.reading_bytes(_TILE_ROWS) + self.right.reading_bytes(self.num_columns)

    def apply(self, values: Tensor, start: int) -> None:
        import torch

        first_row, num_rows, row = self.target.first_row, self.target.num_rows, self.target.row
        begin, end = max(first_row, start), min(first_row + num_rows, start + len(values))
        if begin >= end:
            return
        right = self.right.read(0, self.num_columns).t()
        for first, count in _tiles(begin - first_row, end - begin):
            # The whole tile is multiplied, and the rows that are asked for are taken from it.
            tile = first - first % _TILE_ROWS
            product = self.left.read(row + tile, min(_TILE_ROWS, num_rows - tile)) @ right
            place = first_row + first - start
            rows = values[place : place + count]
            rows.add_(product[first - tile : first - tile + count], alpha=self.scaling)
            if self.magnitude is not None:
                lengths = self.left.tensors.read_flat(self.magnitude, row + first, count).float()
                rows.mul_((lengths / torch.linalg.vector_norm(rows, dim=1)).unsqueeze(1))


@dataclass(slots=True)
class ScaledColumns:
    """DoRA of an embedding: `product` has no magnitude, and `before` reads rows as they are without this change."""

    product: LowRank
    magnitude: str
    before: RowsBefore
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _scales: Tensor | None = None

    @property
    def reading_bytes(self) -> int:
        norms = 3 * _FLOAT32_BYTES * _NORM_ROWS * self.product.num_columns
        return self.product.reading_bytes + norms

    def apply(self, values: Tensor, start: int) -> None:
        self.product.apply(values, start)
        values.mul_(self._column_scales())

    def _column_scales(self) -> Tensor:
        """The magnitude over the length of each column of the whole weight, which is read once for it."""
        import torch

        with self._lock:
            if self._scales is None:
                squares = torch.zeros(self.product.num_columns, dtype=torch.float64)
                for start in range(0, self.product.target.num_rows, _NORM_ROWS):
                    rows = self.before.read(start, min(_NORM_ROWS, self.product.target.num_rows - start))
                    self.product.apply(rows, start)
                    squares += rows.square().sum(0, dtype=torch.float64)
                lengths = self.product.left.tensors.read_flat(self.magnitude, 0, self.product.num_columns)
                self._scales = (lengths / squares.sqrt()).float()
            return self._scales


class RowsBefore(Protocol):
    """A weight without some of its changes."""

    def read(self, start: int, count: int) -> Tensor:
        """Rows as float32 [count, num_columns], in a fresh buffer."""
        ...


def _tiles(start: int, count: int) -> Iterator[tuple[int, int]]:
    """Rows start to start + count - 1, cut where tiles begin: the first row and the number of each piece."""
    end = start + count
    while start < end:
        stop = min(end, start - start % _TILE_ROWS + _TILE_ROWS)
        yield start, stop - start
        start = stop
