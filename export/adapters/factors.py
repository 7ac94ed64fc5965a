"""The two factors of a LoRA product, read by rows from an adapter's tensors.

A product is left [n, rank] times right [rank, m], for a matrix [n, m]. peft stores either factor with the rank first or
last, and those of all experts in one tensor:

    rank last       [n, rank]              lora_B of a linear module; lora_embedding_B
    rank first      [rank, n]              lora_A; lora_embedding_A
    expert last     [n, rank * experts]    lora_B of a 3-D parameter: column k * experts + e is column k of expert e
    expert first    [experts * rank, n]    lora_A of a 3-D parameter
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwonnx.export.checkpoint.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

# Rows of a factor with the expert last that are read at a time, to pick one expert's columns.
_ROWS_AT_ONCE = 128
_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Factor:
    """One factor as a matrix [num_rows, rank]; of one expert if num_experts is more than 1 or expert is set."""

    tensors: Checkpoint
    name: str
    rank: int
    is_rank_first: bool
    expert: int = 0
    num_experts: int = 1

    @property
    def num_rows(self) -> int:
        return self.tensors.info(self.name).shape[1 if self.is_rank_first else 0]

    def read(self, start: int, count: int) -> Tensor:
        """Rows as float32 [count, rank]. Thread-safe.

        Raises:
            CheckpointError: the adapter's file cannot be read.
        """
        import torch

        if self.is_rank_first:
            if self.num_experts == 1:
                return self.tensors.read_columns(self.name, start, count).float().t()
            ranks = self.tensors.read(self.name, self.expert * self.rank, self.rank)
            return ranks[:, start : start + count].float().t()
        if self.num_experts == 1:
            return self.tensors.read(self.name, start, count).float()
        rows = torch.empty((count, self.rank))
        for first in range(0, count, _ROWS_AT_ONCE):
            part = self.tensors.read(self.name, start + first, min(_ROWS_AT_ONCE, count - first))
            rows[first : first + len(part)] = part[:, self.expert :: self.num_experts]
        return rows

    def reading_bytes(self, count: int) -> int:
        """The most memory that reading so many rows takes, with the result."""
        values = 2 * count * self.rank
        if self.num_experts > 1:
            whole = self.num_rows * self.rank
            values += whole if self.is_rank_first else min(count, _ROWS_AT_ONCE) * self.rank * self.num_experts
        return _FLOAT32_BYTES * values
