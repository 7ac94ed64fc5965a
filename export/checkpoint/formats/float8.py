"""F8_E4M3 matrices with one scale for each block of 128 x 128 values, as the official FP8 checkpoints store them.

    X.weight              F8_E4M3 [num_rows, num_columns]
    X.weight_scale_inv    BF16, F16 or F32 [ceil(num_rows / 128), ceil(num_columns / 128)]

weight = value * scale, although the second name says inverse. A product of an F8_E4M3 value (4 significant bits) and a
BF16 or F16 scale (8 or 11) is exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from qwonnx.export.checkpoint.checkpoint import FLOAT_DTYPES, Checkpoint
from qwonnx.export.checkpoint.formats.source_quantization import FP8_BLOCK
from qwonnx.export.errors import MissingTensorError, TensorFormatError

if TYPE_CHECKING:
    import torch

SCALE_SUFFIX = "_scale_inv"  # after the weight's own name


@dataclass(frozen=True, slots=True)
class Float8Weight:
    """One matrix, checked but not read yet; make one with `open`."""

    codes: ClassVar[None] = None  # no kernel takes these codes: the matrix is read as values
    reading_bytes: ClassVar[int] = 0
    reading_bytes_per_value: ClassVar[int] = 0
    name: str
    num_rows: int
    num_columns: int
    num_bytes: int
    _checkpoint: Checkpoint

    @classmethod
    def open(cls, checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Float8Weight:
        """Open a matrix and its scales by name.

        Raises:
            MissingTensorError: one of the two does not exist.
            TensorFormatError: one has the wrong shape or dtype.
        """
        scale = name + SCALE_SUFFIX
        if scale not in checkpoint.names:
            raise MissingTensorError(f"the checkpoint has {name} in F8_E4M3 and no {scale}: restore it")
        if len(shape) != 2:
            raise TensorFormatError(f"{scale} scales a tensor of shape {list(shape)}: only matrices have blocks in fp8")
        blocks = (-(-shape[0] // FP8_BLOCK), -(-shape[1] // FP8_BLOCK))
        num_bytes = checkpoint.expect(name, shape, ("F8_E4M3",)) + checkpoint.expect(scale, blocks, FLOAT_DTYPES)
        return cls(name, *shape, num_bytes, checkpoint)

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows as float32 [count, num_columns]."""
        import torch

        stored = self._checkpoint.read_flat(self.name, start * self.num_columns, count * self.num_columns)
        values = _values().index_select(0, stored.view(torch.uint8).int()).view(count, self.num_columns)
        first, stop = start // FP8_BLOCK, -(-(start + count) // FP8_BLOCK)
        by_block = self._checkpoint.read(self.name + SCALE_SUFFIX, first, stop - first).float()
        scales = by_block[torch.arange(start, start + count) // FP8_BLOCK - first]  # [count, blocks of columns]
        whole = self.num_columns // FP8_BLOCK
        blocks = values[:, : whole * FP8_BLOCK].view(count, whole, FP8_BLOCK)
        blocks.mul_(scales[:, :whole, None])
        values[:, whole * FP8_BLOCK :].mul_(scales[:, whole:])  # the last block may be narrower
        return values

    def read_part(self, row: int, first_column: int, num_columns: int) -> torch.Tensor:
        """Some columns [1, num_columns] of one row. The whole row is read: no model has very wide rows."""
        return self.read(row, 1)[:, first_column : first_column + num_columns]


@cache
def _values() -> torch.Tensor:
    """The value of each of the 256 codes: a lookup takes a sixth of the time of torch's conversion."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
