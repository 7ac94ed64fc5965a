"""F8_E4M3 matrices with scales: weight = value * scale.

    X    F8_E4M3 [num_rows, num_columns], or [matrices, num_rows, num_columns] for fused experts
    S    BF16, F16 or F32, with a scale for each

        block of 128 x 128     [ceil(num_rows / 128), ceil(num_columns / 128)]
        row                    [num_rows, 1] or [num_rows]
        matrix                 [], [1] or [1, 1]

S of fused experts has one axis more, in front. The official checkpoints call S X_scale_inv, although it is no inverse;
compressed-tensors and ModelOpt call it X_scale. A product of an F8_E4M3 value (4 significant bits) and a BF16 or F16
scale (8 or 11) is exact in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from qwonnx.export.checkpoint.checkpoint import FLOAT_DTYPES, Checkpoint
from qwonnx.export.checkpoint.formats.float8_config import FP8_BLOCK
from qwonnx.export.checkpoint.formats.whole_rows import WholeRows
from qwonnx.export.errors import MissingTensorError, TensorFormatError

if TYPE_CHECKING:
    import torch

DTYPE = "F8_E4M3"
INVERSE_SUFFIX, SCALE_SUFFIX = "_scale_inv", "_scale"  # after the weight's own name


@dataclass(frozen=True, slots=True)
class Float8Weight(WholeRows):
    """One weight as a matrix, checked but not read yet; make one with `open`.

    matrix_rows are those of each fused matrix. A scale counts for row_block rows and column_block columns of a matrix.
    """

    codes: ClassVar[None] = None  # no kernel takes these codes: the matrix is read as values
    reading_bytes: ClassVar[int] = 0
    reading_bytes_per_value: ClassVar[int] = 9  # places in the table of values, float32, and scales
    name: str
    num_rows: int
    num_columns: int
    num_bytes: int
    _scale: str
    _matrix_rows: int
    _row_block: int
    _column_block: int
    _checkpoint: Checkpoint

    @classmethod
    def open(cls, checkpoint: Checkpoint, name: str, suffix: str, shape: tuple[int, ...]) -> Float8Weight:
        """Open a weight of this shape and its scales, which have this suffix.

        Raises:
            MissingTensorError: one of the two does not exist.
            TensorFormatError: one has the wrong shape or dtype.
        """
        scale = name + suffix
        if scale not in checkpoint.names:
            raise MissingTensorError(f"the checkpoint has {name} in {DTYPE} and no {scale}: restore it")
        if len(shape) not in (2, 3):
            raise TensorFormatError(f"{scale} scales a tensor of shape {list(shape)}: only matrices have scales in fp8")
        num_bytes = checkpoint.expect(name, shape, (DTYPE,))
        found = checkpoint.info(scale).shape
        row_block, column_block = _blocks(found, shape) or (FP8_BLOCK, FP8_BLOCK)
        if _blocks(found, shape) is None:  # says what was expected
            blocks = (*shape[:-2], -(-shape[-2] // FP8_BLOCK), -(-shape[-1] // FP8_BLOCK))
            checkpoint.expect(scale, blocks, FLOAT_DTYPES)
        num_bytes += checkpoint.expect(scale, found, FLOAT_DTYPES)
        num_rows = math.prod(shape[:-1])
        return cls(name, num_rows, shape[-1], num_bytes, scale, shape[-2], row_block, column_block, checkpoint)

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows as float32 [count, num_columns]."""
        import torch

        stored = self._checkpoint.read_flat(self.name, start * self.num_columns, count * self.num_columns)
        values = float8_values().index_select(0, stored.view(torch.uint8).int()).view(count, self.num_columns)
        scales = self._scales(start, count)
        if scales.shape[1] == 1:
            return values.mul_(scales)
        whole = self.num_columns // self._column_block
        blocks = values[:, : whole * self._column_block].view(count, whole, self._column_block)
        blocks.mul_(scales[:, :whole, None])
        values[:, whole * self._column_block :].mul_(scales[:, whole:])  # the last block may be narrower
        return values

    def _scales(self, start: int, count: int) -> torch.Tensor:
        """float32 [count, blocks of columns]."""
        import torch

        per_matrix, width = -(-self._matrix_rows // self._row_block), -(-self.num_columns // self._column_block)
        rows = torch.arange(start, start + count)
        lines = rows // self._matrix_rows * per_matrix + rows % self._matrix_rows // self._row_block
        first, stop = int(lines[0]), int(lines[-1]) + 1
        stored = self._checkpoint.read_flat(self._scale, first * width, (stop - first) * width)
        return stored.float().view(-1, width)[lines - first]


def float8_shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    """The shape of a weight."""
    return checkpoint.info(name).shape


def _blocks(scale: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Rows and columns for which a scale counts; None if no layout has scales of this shape."""
    *matrices, num_rows, num_columns = shape
    blocks = (*matrices, -(-num_rows // FP8_BLOCK), -(-num_columns // FP8_BLOCK))
    if scale == blocks:
        return FP8_BLOCK, FP8_BLOCK
    if scale in ((*matrices, num_rows, 1), (*matrices, num_rows)):
        return 1, num_columns
    of_matrices = (tuple(matrices), (*matrices, 1), (*matrices, 1, 1))
    return (num_rows, num_columns) if scale in of_matrices else None


@cache
def float8_values() -> torch.Tensor:
    """The value of each of the 256 codes: a lookup takes a sixth of the time of torch's conversion."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
