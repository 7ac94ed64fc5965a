"""GPTQ matrices, format 1: codes of 4 or 8 bits, one scale and zero point for a group of input features.

    X.qweight    I32 [K * bits / 32, N]    codes, packed along the input features, lowest bits first
    X.qzeros     I32 [groups, N * bits / 32]    zero points minus one, packed along the output features
    X.scales     BF16, F16 or F32 [groups, N]
    X.g_idx      I32 [K], may be absent    the group of each input feature

The weight has N output and K input features: weight[n, k] = (code - zero_point) * scale of k's group. The tensors are
stored transposed, so a slice of a weight's rows is a slice of their columns. The four bytes of a 32-bit word of codes
already have the kernels' layout (see quantize.py), so only words are transposed.

The one is subtracted from each zero point in the whole word: a zero point of 0 borrows from the next one. GPTQModel
writes and reads words so. Tools that add one to each field give the same values if no zero point is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from qwonnx.export.checkpoint.checkpoint import FLOAT_DTYPES, Checkpoint
from qwonnx.export.checkpoint.formats.source_quantization import GptqFormat, StoredCodes
from qwonnx.export.errors import MissingTensorError, TensorFormatError

if TYPE_CHECKING:
    import torch

CODES_SUFFIX = ".qweight"
SUFFIXES = (CODES_SUFFIX, ".qzeros", ".scales", ".g_idx")  # after the module's name

_WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class CodeRows:
    """Rows of a quantised weight of K input features in the kernels' layout, in blocks of block_size input features.

    codes are uint8 [rows, K * bits / 8], scales float32 [rows, K / block_size], zero points uint8
    [rows, ceil(K / block_size * bits / 8)], packed as codes are.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor


@dataclass(frozen=True, slots=True)
class GptqWeight:
    """One matrix, checked but not read yet; make one with `open`. name is the module's, without a suffix."""

    reading_bytes: ClassVar[int] = 0
    reading_bytes_per_value: ClassVar[int] = 0
    name: str
    codes: StoredCodes
    num_rows: int
    num_columns: int
    num_bytes: int
    _checkpoint: Checkpoint

    @classmethod
    def open(cls, checkpoint: Checkpoint, name: str, shape: tuple[int, ...], stored: GptqFormat) -> GptqWeight:
        """Open the matrix of a module.

        Raises:
            MissingTensorError: one of its tensors does not exist.
            TensorFormatError: one has the wrong shape or dtype, or input features are permuted.
        """
        qweight, qzeros, scales, g_idx = (name + suffix for suffix in SUFFIXES)
        codes = _stored_codes(checkpoint, name, shape, stored)
        num_rows, num_columns = shape
        num_groups = -(-num_columns // codes.group_size)
        per_word = _WORD_BITS // codes.bits
        num_bytes = (
            checkpoint.expect(qweight, (num_columns // per_word, num_rows), ("I32",))
            + checkpoint.expect(qzeros, (num_groups, num_rows // per_word), ("I32",))
            + checkpoint.expect(scales, (num_groups, num_rows), FLOAT_DTYPES)
        )
        if g_idx in checkpoint.names:
            num_bytes += checkpoint.expect(g_idx, (num_columns,), ("I32",))
            groups = checkpoint.read_bytes(g_idx, 0, 4 * num_columns).view("<i4")
            if not np.array_equal(groups, np.arange(num_columns) // codes.group_size):
                raise TensorFormatError(
                    f"{g_idx} permutes the input features, and kernels take groups in their order only:"
                    " export a checkpoint that was quantised with desc_act false"
                )
        elif stored.may_permute:
            raise MissingTensorError(f"the checkpoint has no {g_idx}, which desc_act needs: restore it")
        return cls(name, codes, num_rows, num_columns, num_bytes, checkpoint)

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows as float32 [count, num_columns]."""
        # Each piece lies in one group. It is a whole group, unless the last group is shorter.
        piece = math.gcd(self.num_columns, self.codes.group_size)
        groups = _groups(self.num_columns, self.codes.group_size)[::piece]
        scales, zero_points = (
            part[:, groups, None] for part in (self._scales(start, count), self._zero_points(start, count))
        )
        codes = _unpack(self._words(start, count), self.codes.bits).view(count, -1, piece)
        return codes.float().sub_(zero_points).mul_(scales).view(count, -1)

    def read_part(self, row: int, first_column: int, num_columns: int) -> torch.Tensor:
        """Some columns [1, num_columns] of one row. The whole row is read: no model has very wide rows."""
        return self.read(row, 1)[:, first_column : first_column + num_columns]

    def read_codes(self, start: int, count: int, block_size: int) -> CodeRows:
        """Rows of the stored codes, in the kernels' layout.

        block_size divides the number of columns, and the group size unless there is one group. Blocks that are smaller
        than their group repeat its scale and zero point: the weight stays the same to the bit.
        """
        blocks = _groups(self.num_columns, self.codes.group_size)[::block_size]  # the group of each block
        zero_points = self._zero_points(start, count)[:, blocks]
        import torch

        return CodeRows(
            codes=self._words(start, count).view(torch.uint8),
            scales=self._scales(start, count)[:, blocks],
            zero_points=_pack(zero_points, self.codes.bits),
        )

    def _words(self, start: int, count: int) -> torch.Tensor:
        """int32 [count, num_columns * bits / 32]."""
        return self._checkpoint.read_columns(self.name + CODES_SUFFIX, start, count).t().contiguous()

    def _scales(self, start: int, count: int) -> torch.Tensor:
        """float32 [count, groups]."""
        return self._checkpoint.read_columns(self.name + ".scales", start, count).float().t().contiguous()

    def _zero_points(self, start: int, count: int) -> torch.Tensor:
        """uint8 [count, groups].

        Raises:
            TensorFormatError: config.json says that the checkpoint is symmetric, and a zero point is not the middle.
        """
        import torch

        bits = self.codes.bits
        per_word = _WORD_BITS // bits
        first, stop = start // per_word, -(-(start + count) // per_word)
        words = self._checkpoint.read_columns(self.name + ".qzeros", first, stop - first)
        ones = sum(1 << shift for shift in range(0, _WORD_BITS, bits))
        whole = ((words.long() + ones) & 0xFFFF_FFFF).to(torch.uint32).view(torch.int32)
        zero_points = _unpack(whole, bits)[:, start - first * per_word :][:, :count].t().contiguous()
        middle = 1 << (bits - 1)
        if not self.codes.has_zero_points and bool((zero_points == middle + 1).all()):
            raise TensorFormatError(
                f"{self.name}.qzeros has the zero points {middle} without the minus one of GPTQ's format 1 (gptq_v2):"
                " export the checkpoint that is not quantised"
            )
        if not self.codes.has_zero_points and not bool((zero_points == middle).all()):
            raise TensorFormatError(
                f"{self.name}.qzeros has zero points other than {middle}, and config.json says sym: set that to false"
            )
        return zero_points


def gptq_shape(checkpoint: Checkpoint, name: str, stored: GptqFormat) -> tuple[int, ...]:
    """The shape of a module's weight, from the shapes of its tensors.

    Raises:
        TensorFormatError: its codes are not a matrix.
    """
    words = checkpoint.info(name + CODES_SUFFIX).shape
    if len(words) != 2:
        raise TensorFormatError(f"{name}{CODES_SUFFIX} has shape {list(words)} and is not a matrix: restore it")
    shapes = [(words[1], words[0] * _WORD_BITS // bits) for bits in stored.bits]
    return next((shape for shape in shapes if _fitting(checkpoint, name, shape[1], stored) is not None), shapes[0])


def _stored_codes(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], stored: GptqFormat) -> StoredCodes:
    """Bits and group size of a module."""
    if len(shape) != 2 or shape[0] % 8 or shape[1] % 8:
        raise TensorFormatError(
            f"{name}{CODES_SUFFIX} stands for a weight of shape {list(shape)}: only matrices whose sizes are"
            " multiples of 8 can be stored so; use the config.json that was saved with the weights"
        )
    return _fitting(checkpoint, name, shape[1], stored) or _choices(shape[1], stored)[0]


def _choices(num_columns: int, stored: GptqFormat) -> list[StoredCodes]:
    """All pairs of bits and group size that config.json allows."""
    return [
        StoredCodes(bits, num_columns if size is None else min(size, num_columns), not stored.symmetric)
        for bits in stored.bits
        for size in stored.group_sizes
    ]


def _fitting(checkpoint: Checkpoint, name: str, num_columns: int, stored: GptqFormat) -> StoredCodes | None:
    """The choice that fits the shapes of a module's tensors; None if no choice does."""
    found = [
        checkpoint.info(name + suffix).shape[:1] if name + suffix in checkpoint.names else ()
        for suffix in (CODES_SUFFIX, ".scales")
    ]
    for codes in _choices(num_columns, stored):
        num_groups = -(-num_columns // codes.group_size)
        if found == [(num_columns * codes.bits // _WORD_BITS,), (num_groups,)]:
            return codes
    return None


@lru_cache(maxsize=16)
def _groups(num_columns: int, group_size: int) -> torch.Tensor:
    """The group of each input feature, int32 [num_columns]. The result is cached: do not write to it."""
    import torch

    return torch.arange(num_columns, dtype=torch.int32) // group_size


def _unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, n] -> uint8 [rows, n * 32 / bits], lowest bits first."""
    import torch

    packed = words.view(torch.uint8)
    return packed if bits == 8 else torch.stack((packed & 0xF, packed >> 4), -1).flatten(-2)


def _pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [rows, n] of 4 or 8 significant bits -> uint8 [rows, ceil(n * bits / 8)], lowest bits first."""
    import torch

    if bits == 8:
        return values
    if values.shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return values[:, 0::2] | (values[:, 1::2] << 4)
