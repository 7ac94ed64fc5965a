"""What the weights have in common that are decoded in whole rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class WholeRows(ABC):
    """A weight whose parts are cut from whole rows: no model has very wide ones."""

    __slots__ = ()

    @abstractmethod
    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows as float32 [count, num_columns]."""

    def read_part(self, row: int, first_column: int, num_columns: int) -> torch.Tensor:
        """Some columns [1, num_columns] of one row."""
        return self.read(row, 1)[:, first_column : first_column + num_columns]
