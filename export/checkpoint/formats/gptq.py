"""GPTQ matrices, format 1: codes of 4 or 8 bits, one scale and zero point for a group of input features.

    X.qweight    I32 [K * bits / 32, N]    codes, packed along the input features, lowest bits first
    X.qzeros     I32 [groups, N * bits / 32]    zero points minus one, packed along the output features
    X.scales     BF16, F16 or F32 [groups, N]
    X.g_idx      I32 [K], may be absent    the group of each input feature

The weight has N output and K input features: weight[n, k] = (code - zero_point) * scale of k's group. The tensors are
stored transposed, so a slice of a weight's rows is a slice of their columns. The four bytes of a 32-bit word of codes
already have the kernels' layout (see quantize.py), so only words are transposed.

Under desc_act a quantiser may put any input features into a group. The kernels take groups in their order only, and
input features cannot move: other weights use them in their order. Such a matrix is read as values, and quantised again.

The one is subtracted from each zero point in the whole word: a zero point of 0 borrows from the next one. GPTQModel
writes and reads words so. Tools that add one to each field give the same values if no zero point is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from qwonnx.export.checkpoint.checkpoint import FLOAT_DTYPES, Checkpoint
from qwonnx.export.checkpoint.formats.codes import (
    WORD_BITS,
    CodeRows,
    StoredCodes,
    dequantized,
    groups_in_order,
    pack,
    unpack,
)
from qwonnx.export.checkpoint.formats.gptq_config import GptqFormat
from qwonnx.export.checkpoint.formats.whole_rows import WholeRows
from qwonnx.export.errors import MissingTensorError, TensorFormatError

if TYPE_CHECKING:
    import torch

CODES_SUFFIX = ".qweight"
SUFFIXES = (CODES_SUFFIX, ".qzeros", ".scales", ".g_idx")  # after the module's name

_ROWS_AT_ONCE = 256  # whose values stay in a processor's cache while they are turned


@dataclass(frozen=True, slots=True)
class GptqWeight(WholeRows):
    """One matrix, checked but not read yet; make one with `open`. name is the module's, without a suffix.

    codes are None if input features are permuted: only values can be read then.
    """

    reading_bytes: ClassVar[int] = 0
    name: str
    codes: StoredCodes | None
    num_rows: int
    num_columns: int
    num_bytes: int
    _stored: StoredCodes
    _checkpoint: Checkpoint

    @classmethod
    def open(cls, checkpoint: Checkpoint, name: str, shape: tuple[int, ...], stored: GptqFormat) -> GptqWeight:
        """Open the matrix of a module.

        Raises:
            MissingTensorError: one of its tensors does not exist.
            TensorFormatError: one has the wrong shape or dtype.
        """
        qweight, qzeros, scales, g_idx = (name + suffix for suffix in SUFFIXES)
        codes = _stored_codes(checkpoint, name, shape, stored)
        num_rows, num_columns = shape
        num_groups = -(-num_columns // codes.group_size)
        per_word = WORD_BITS // codes.bits
        num_bytes = (
            checkpoint.expect(qweight, (num_columns // per_word, num_rows), ("I32",))
            + checkpoint.expect(qzeros, (num_groups, num_rows // per_word), ("I32",))
            + checkpoint.expect(scales, (num_groups, num_rows), FLOAT_DTYPES)
        )
        permuted = False
        if g_idx in checkpoint.names:
            num_bytes += checkpoint.expect(g_idx, (num_columns,), ("I32",))
            groups = _stored_groups(checkpoint, name, num_columns)
            permuted = not np.array_equal(groups, np.arange(num_columns) // codes.group_size)
            if permuted and (groups.min() < 0 or groups.max() >= num_groups):
                raise TensorFormatError(f"{g_idx} names groups beyond the {num_groups} of {scales}: restore it")
        elif stored.may_permute:
            raise MissingTensorError(f"the checkpoint has no {g_idx}, which desc_act needs: restore it")
        kept = None if permuted else codes
        return cls(name, kept, num_rows, num_columns, num_bytes, codes, checkpoint)

    @property
    def reading_bytes_per_value(self) -> int:
        """Unpacked codes, and float32; permuted features get a copy of their scale and zero point each."""
        return 14 if self.codes is None else 6

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows as float32 [count, num_columns]."""
        if self.codes is None:
            return self._read_permuted(start, count)
        codes = unpack(self._words(start, count), self._stored.bits)
        scales, zero_points = self._scales(start, count), self._zero_points(start, count)
        return dequantized(codes, scales, zero_points, self._stored.group_size)

    def _read_permuted(self, start: int, count: int) -> torch.Tensor:
        """Rows of permuted input features, computed as they are stored: a feature's scales follow each other there."""
        import torch

        groups = torch.from_numpy(_stored_groups(self._checkpoint, self.name, self.num_columns)).int()
        words = self._checkpoint.read_columns(self.name + CODES_SUFFIX, start, count)
        scales = self._checkpoint.read_columns(self.name + ".scales", start, count).float()
        zero_points = self._zero_points(start, count).t().contiguous()
        rows = torch.empty((count, self.num_columns))
        for first in range(0, count, _ROWS_AT_ONCE):
            part = slice(first, first + _ROWS_AT_ONCE)
            octets = words[:, part].contiguous().view(torch.uint8)
            octets = octets.view(len(words), -1, WORD_BITS // 8).permute(0, 2, 1)
            codes = octets if self._stored.bits == 8 else torch.stack((octets & 0xF, octets >> 4), 2)
            values = codes.reshape(self.num_columns, -1).float()
            values.sub_(zero_points[:, part].index_select(0, groups)).mul_(scales[:, part].index_select(0, groups))
            rows[part].copy_(values.t())
        return rows

    def read_codes(self, start: int, count: int, block_size: int) -> CodeRows:
        """Rows of the stored codes, in the kernels' layout; see CodedWeight."""
        import torch

        blocks = groups_in_order(self.num_columns, self._stored.group_size)[::block_size]  # the group of each block
        return CodeRows(
            codes=self._words(start, count).view(torch.uint8),
            scales=self._scales(start, count)[:, blocks],
            zero_points=pack(self._zero_points(start, count)[:, blocks], self._stored.bits),
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

        bits = self._stored.bits
        per_word = WORD_BITS // bits
        first, stop = start // per_word, -(-(start + count) // per_word)
        words = self._checkpoint.read_columns(self.name + ".qzeros", first, stop - first)
        ones = sum(1 << shift for shift in range(0, WORD_BITS, bits))
        whole = ((words.long() + ones) & 0xFFFF_FFFF).to(torch.uint32).view(torch.int32)
        zero_points = unpack(whole, bits)[:, start - first * per_word :][:, :count].t().contiguous()
        middle = 1 << (bits - 1)
        if not self._stored.has_zero_points and bool((zero_points == middle + 1).all()):
            raise TensorFormatError(
                f"{self.name}.qzeros has the zero points {middle} without the minus one of GPTQ's format 1 (gptq_v2):"
                " export the checkpoint that is not quantised"
            )
        if not self._stored.has_zero_points and not bool((zero_points == middle).all()):
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
    shapes = [(words[1], words[0] * WORD_BITS // bits) for bits in stored.bits]
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
        if found == [(num_columns * codes.bits // WORD_BITS,), (num_groups,)]:
            return codes
    return None


def _stored_groups(checkpoint: Checkpoint, name: str, num_columns: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The group of each input feature, as stored."""
    values: np.ndarray[tuple[int], np.dtype[np.int32]] = checkpoint.read_bytes(
        f"{name}.g_idx", 0, 4 * num_columns
    ).view("<i4")
    return values
