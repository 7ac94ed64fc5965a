"""NVFP4 matrices: two 4-bit floats (E2M1) in a byte, a scale in F8_E4M3 for 16 input features, and one for the matrix.

                  codes             scales of groups    scale of the matrix    weight
    compressed    X.weight_packed   X.weight_scale      X.weight_global_scale  code * (scale / global)
    ModelOpt      X.weight          X.weight_scale      X.weight_scale_2       code * (scale * global)

    codes     U8 [num_rows, num_columns / 2], the even input feature in the low half
    scales    F8_E4M3 [num_rows, num_columns / 16]
    global    F32, one value

No kernel takes these codes: the matrix is read as values, and quantised again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.formats.compressed_tensors import FP4_GROUP
from qwonnx.export.checkpoint.formats.float8 import DTYPE, float8_values
from qwonnx.export.checkpoint.formats.whole_rows import WholeRows
from qwonnx.export.errors import TensorFormatError

if TYPE_CHECKING:
    import torch

PACKED_SUFFIX, GLOBAL_SUFFIX = ".weight_packed", ".weight_global_scale"
MODELOPT_GLOBAL_SUFFIX = ".weight_scale_2"
SCALE_SUFFIX = ".weight_scale"
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by the three low bits; the fourth is the sign


@dataclass(frozen=True, slots=True)
class Nvfp4Weight(WholeRows):
    """One matrix, checked but not read yet; make one with `open`. name is the module's, without a suffix."""

    codes: ClassVar[None] = None
    reading_bytes: ClassVar[int] = 0
    reading_bytes_per_value: ClassVar[int] = 7  # places in the table of values, float32, and scales
    name: str
    num_rows: int
    num_columns: int
    num_bytes: int
    _codes: str
    _global: float  # that the scales are multiplied with, or divided by
    _divides: bool
    _checkpoint: Checkpoint

    @classmethod
    def open(
        cls, checkpoint: Checkpoint, name: str, codes_suffix: str, global_suffix: str, shape: tuple[int, ...]
    ) -> Nvfp4Weight:
        """Open the matrix of a module.

        Raises:
            MissingTensorError: one of its tensors does not exist.
            TensorFormatError: one has the wrong shape or dtype.
        """
        if len(shape) != 2 or shape[1] % FP4_GROUP:
            raise TensorFormatError(
                f"{name}{codes_suffix} stands for a weight of shape {list(shape)}: only matrices with a multiple of"
                f" {FP4_GROUP} input features can be stored so; use the config.json that was saved with the weights"
            )
        num_rows, num_columns = shape
        codes, scale, whole = name + codes_suffix, name + SCALE_SUFFIX, name + global_suffix
        num_bytes = checkpoint.expect(codes, (num_rows, num_columns // 2), ("U8",))
        num_bytes += checkpoint.expect(scale, (num_rows, num_columns // FP4_GROUP), (DTYPE,))
        found = checkpoint.info(whole).shape if whole in checkpoint.names else (1,)
        num_bytes += checkpoint.expect(whole, found if math.prod(found) == 1 else (1,), ("F32",))
        factor = float(checkpoint.read_bytes(whole, 0, 4).view("<f4")[0])
        divides = global_suffix == GLOBAL_SUFFIX
        if not math.isfinite(factor) or (divides and factor == 0):
            raise TensorFormatError(f"{whole} is {factor}: the file is damaged; restore it")
        return cls(name, num_rows, num_columns, num_bytes, codes, factor, divides, checkpoint)

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows as float32 [count, num_columns]."""
        import torch

        width = self.num_columns // 2
        octets = self._checkpoint.read_bytes(self._codes, start * width, count * width)
        values = _pairs().index_select(0, torch.from_numpy(octets).int()).view(count, -1, FP4_GROUP)
        width = self.num_columns // FP4_GROUP
        octets = self._checkpoint.read_bytes(self.name + SCALE_SUFFIX, start * width, count * width)
        scales = float8_values().index_select(0, torch.from_numpy(octets).int()).view(count, width, 1)
        scales = scales.div_(self._global) if self._divides else scales.mul_(self._global)
        return values.mul_(scales).view(count, self.num_columns)


def nvfp4_shape(checkpoint: Checkpoint, codes: str) -> tuple[int, ...]:
    """The shape of a weight, from that of its codes."""
    *rows, octets = checkpoint.info(codes).shape or (0,)
    return (*rows, 2 * octets)


@cache
def _pairs() -> torch.Tensor:
    """The two values of each byte, float32 [256, 2]."""
    import torch

    values = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    octets = torch.arange(256)
    return torch.stack((values[octets & 0xF], values[octets >> 4]), 1)
