"""Weights that an adapter has whole, in place of the base's: modules_to_save, and an embedding that was trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qwonnx.export.adapters.adapter import Adapter
from qwonnx.export.checkpoint.formats.stored_weights import PlainWeight, StoredWeight

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowsOfWeight:
    """Some rows of a weight, as a weight."""

    codes: ClassVar[None] = None
    weight: StoredWeight
    first_row: int
    num_rows: int

    @property
    def name(self) -> str:
        return f"{self.weight.name}[{self.first_row}:]"

    @property
    def num_columns(self) -> int:
        return self.weight.num_columns

    @property
    def num_bytes(self) -> int:
        return self.weight.num_bytes * self.num_rows // self.weight.num_rows

    @property
    def reading_bytes(self) -> int:
        return self.weight.reading_bytes

    @property
    def reading_bytes_per_value(self) -> int:
        return self.weight.reading_bytes_per_value

    def read(self, start: int, count: int) -> Tensor:
        return self.weight.read(self.first_row + start, count)

    def read_part(self, row: int, first_column: int, num_columns: int) -> Tensor:
        return self.weight.read_part(self.first_row + row, first_column, num_columns)


def whole_tensor(adapter: Adapter, name: str, shape: tuple[int, ...]) -> PlainWeight:
    """An adapter's tensor as a weight of this shape.

    Raises:
        AdapterError: it has another shape or type.
    """
    adapter.expect(name, shape)
    num_bytes = adapter.tensors.info(name).num_bytes
    return PlainWeight(name, math.prod(shape[:-1]), shape[-1], num_bytes, adapter.tensors)
