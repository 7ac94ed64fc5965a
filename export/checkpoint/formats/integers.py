"""Matrices of integer codes in the order of their rows, as compressed-tensors and bitsandbytes store them.

                    codes                                      scales                       zero points
    pack-quantized  X.weight_packed I32 [N, ceil(K bits / 32)] X.weight_scale [N, groups]   X.weight_zero_point I32
                                                                                            [ceil(N bits / 32), groups]
    int-quantized   X.weight I8 [N, K]                         X.weight_scale [N, groups]   X.weight_zero_point I8
                                                                                            [N, groups]
    bitsandbytes    X.weight I8 [N, K]                         X.SCB F32 [N], 127 times     none
                                                               as large

The weight has N output and K input features: weight[n, k] = (code - zero_point) * scale of k's group. Words have codes
plus 2 ** (bits - 1), lowest bits first, which is the kernels' layout; packed zero points follow each other along the
output features. X.weight_g_idx may give the group of each input feature.
"""

from __future__ import annotations

from collections.abc import Callable
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
from qwonnx.export.checkpoint.formats.compressed_tensors import CompressedFormat, Kind, Scheme
from qwonnx.export.checkpoint.formats.whole_rows import WholeRows
from qwonnx.export.errors import TensorFormatError

if TYPE_CHECKING:
    import torch

PACKED_SUFFIX, SHAPE_SUFFIX, GROUPS_SUFFIX = ".weight_packed", ".weight_shape", ".weight_g_idx"
SCALE_SUFFIX, ZERO_POINT_SUFFIX = ".weight_scale", ".weight_zero_point"
PACKED_COMPANIONS = (SCALE_SUFFIX, SHAPE_SUFFIX, ZERO_POINT_SUFFIX, GROUPS_SUFFIX)
ROW_SCALE_SUFFIX = ".SCB"
_WEIGHT = ".weight"
_BYTE = 8
_LARGEST = 127  # that SCB stands for


@dataclass(frozen=True, slots=True)
class IntegerWeight(WholeRows):
    """One matrix, checked but not read yet; make one with `packed`, `bytes_of` or `with_row_scales`.

    name is the module's. codes are None if input features are permuted: only values can be read then.
    """

    reading_bytes: ClassVar[int] = 0
    name: str
    codes: StoredCodes | None
    num_rows: int
    num_columns: int
    num_bytes: int
    _stored: StoredCodes
    _codes: str
    _scales: str
    _zero_points: str | None
    _checkpoint: Checkpoint

    @classmethod
    def packed(
        cls, checkpoint: Checkpoint, name: str, shape: tuple[int, ...], stored: CompressedFormat
    ) -> IntegerWeight:
        """Open a module of compressed-tensors whose codes are in words.

        Raises:
            MissingTensorError: one of its tensors does not exist.
            TensorFormatError: one has the wrong shape or dtype, or fits no group of config.json.
            ConfigError: see CompressedFormat.scheme.
        """
        num_rows, num_columns = _matrix(name + PACKED_SUFFIX, shape)
        if (written := packed_shape(checkpoint, name)) != shape:
            raise TensorFormatError(
                f"{name}{PACKED_SUFFIX} has shape {list(written)} where config.json asks for {list(shape)}: use the"
                " config.json that was saved with the weights"
            )
        scheme = stored.scheme(name, Kind.INTEGERS, _fitting(checkpoint, name, shape, PACKED_SUFFIX))
        codes = _codes_of(scheme, num_columns)
        num_groups = -(-num_columns // codes.group_size)
        num_bytes = checkpoint.expect(
            name + PACKED_SUFFIX, (num_rows, _words(num_columns, codes.bits)), ("I32",)
        ) + checkpoint.expect(name + SCALE_SUFFIX, _scale_shape(checkpoint, name, num_rows, num_groups), FLOAT_DTYPES)
        zero_points = name + ZERO_POINT_SUFFIX if codes.has_zero_points else None
        if zero_points is not None:
            num_bytes += checkpoint.expect(zero_points, (_words(num_rows, codes.bits), num_groups), ("I32",))
        permuted = False
        if name + GROUPS_SUFFIX in checkpoint.names:
            groups = _groups(checkpoint, name, num_columns)
            num_bytes += groups.nbytes
            permuted = not np.array_equal(groups, np.arange(num_columns) // codes.group_size)
            if groups.min() < 0 or groups.max() >= num_groups:
                raise TensorFormatError(f"{name}{GROUPS_SUFFIX} names groups beyond {num_groups}: restore it")
        kept = None if permuted else codes
        parts = (codes, name + PACKED_SUFFIX, name + SCALE_SUFFIX, zero_points)
        return cls(name, kept, num_rows, num_columns, num_bytes, *parts, checkpoint)

    @classmethod
    def bytes_of(
        cls, checkpoint: Checkpoint, name: str, shape: tuple[int, ...], stored: CompressedFormat
    ) -> IntegerWeight:
        """Open a module of compressed-tensors whose codes are bytes; raises as `packed` does."""
        num_rows, num_columns = _matrix(name + _WEIGHT, shape)
        scheme = stored.scheme(name, Kind.INTEGERS, _fitting(checkpoint, name, shape, _WEIGHT))
        group_size = min(scheme.group_size or num_columns, num_columns)
        codes = StoredCodes(_BYTE, group_size, not scheme.symmetric)
        num_groups = -(-num_columns // group_size)
        num_bytes = checkpoint.expect(name + _WEIGHT, (num_rows, num_columns), ("I8",)) + checkpoint.expect(
            name + SCALE_SUFFIX, _scale_shape(checkpoint, name, num_rows, num_groups), FLOAT_DTYPES
        )
        zero_points = name + ZERO_POINT_SUFFIX if codes.has_zero_points else None
        if zero_points is not None:
            num_bytes += checkpoint.expect(zero_points, _scale_shape(checkpoint, name, num_rows, num_groups), ("I8",))
        parts = (codes, name + _WEIGHT, name + SCALE_SUFFIX, zero_points)
        return cls(name, codes, num_rows, num_columns, num_bytes, *parts, checkpoint)

    @classmethod
    def with_row_scales(cls, checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> IntegerWeight:
        """Open a module of bitsandbytes with 8 bits; raises as `packed` does."""
        num_rows, num_columns = _matrix(name + _WEIGHT, shape)
        num_bytes = checkpoint.expect(name + _WEIGHT, (num_rows, num_columns), ("I8",))
        num_bytes += checkpoint.expect(name + ROW_SCALE_SUFFIX, (num_rows,), ("F32",))
        codes = StoredCodes(_BYTE, num_columns, has_zero_points=False)
        parts = (codes, name + _WEIGHT, name + ROW_SCALE_SUFFIX, None)
        return cls(name, codes, num_rows, num_columns, num_bytes, *parts, checkpoint)

    @property
    def reading_bytes_per_value(self) -> int:
        """Unpacked codes, and float32; permuted features get a copy of their scale and zero point each."""
        return 10 if self.codes is None else 6

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows as float32 [count, num_columns]."""
        import torch

        codes = unpack(self._packed(start, count), self._stored.bits)[:, : self.num_columns]
        scales, zero_points = self._row_scales(start, count), self._row_zero_points(start, count)
        groups = None
        if self.codes is None:
            groups = torch.from_numpy(_groups(self._checkpoint, self.name, self.num_columns)).int()
        return dequantized(codes, scales, zero_points, self._stored.group_size, groups)

    def read_codes(self, start: int, count: int, block_size: int) -> CodeRows:
        """Rows of the stored codes, in the kernels' layout; see CodedWeight."""
        blocks = groups_in_order(self.num_columns, self._stored.group_size)[::block_size]  # the group of each block
        bits = self._stored.bits
        return CodeRows(
            codes=self._packed(start, count)[:, : self.num_columns * bits // _BYTE],
            scales=self._row_scales(start, count)[:, blocks],
            zero_points=pack(self._row_zero_points(start, count)[:, blocks], bits),
        )

    def _packed(self, start: int, count: int) -> torch.Tensor:
        """Codes uint8 [count, bytes of a row], in the kernels' layout."""
        import torch

        width = self._checkpoint.info(self._codes).num_bytes // self.num_rows
        octets = torch.from_numpy(self._checkpoint.read_bytes(self._codes, start * width, count * width))
        if not self._codes.endswith(PACKED_SUFFIX):
            octets ^= 0x80  # a signed byte plus 128
        return octets.view(count, width)

    def _row_scales(self, start: int, count: int) -> torch.Tensor:
        """float32 [count, groups]."""
        if self._checkpoint.info(self._scales).num_bytes < 2 * self.num_rows:  # one for the matrix
            return self._checkpoint.read(self._scales).float().view(1, 1).expand(count, 1)
        scales = self._checkpoint.read(self._scales, start, count).float().view(count, -1)
        return scales.div_(_LARGEST) if self._scales.endswith(ROW_SCALE_SUFFIX) else scales

    def _row_zero_points(self, start: int, count: int) -> torch.Tensor:
        """uint8 [count, groups], or [1, groups] if all are in the middle."""
        import torch

        bits, name = self._stored.bits, self._zero_points
        if name is None:
            num_groups = -(-self.num_columns // self._stored.group_size)
            return torch.full((1, num_groups), 1 << (bits - 1), dtype=torch.uint8).expand(count, num_groups)
        if self._checkpoint.info(name).dtype == "I8":
            width = self._checkpoint.info(name).num_bytes // self.num_rows
            octets = self._checkpoint.read_bytes(name, start * width, count * width)
            return torch.from_numpy(octets).view(count, width) ^ 0x80
        per_word = WORD_BITS // bits
        first, stop = start // per_word, -(-(start + count) // per_word)
        words = self._checkpoint.read(name, first, stop - first)  # [words, groups]
        of_groups = words.view(torch.uint8).view(*words.shape, WORD_BITS // 8).transpose(0, 1).flatten(1)
        return unpack(of_groups, bits)[:, start - first * per_word :][:, :count].t().contiguous()


def packed_shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    """The shape of a module's weight, which a tensor has.

    Raises:
        MissingTensorError: it does not exist.
        TensorFormatError: it is not two integers.
    """
    shape = name + SHAPE_SUFFIX
    checkpoint.expect(shape, (2,), ("I64", "I32"))
    kind = "<i8" if checkpoint.info(shape).dtype == "I64" else "<i4"
    rows, columns = checkpoint.read_bytes(shape, 0, checkpoint.info(shape).num_bytes).view(kind)
    return int(rows), int(columns)


def bytes_shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    """The shape of a module's weight, whose codes are bytes."""
    return checkpoint.info(name + _WEIGHT).shape


def _matrix(codes: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2:
        raise TensorFormatError(
            f"{codes} stands for a weight of shape {list(shape)}: only matrices can be stored so; use the config.json"
            " that was saved with the weights"
        )
    return shape[0], shape[1]


def _fitting(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], codes_suffix: str) -> Callable[[Scheme], bool]:
    """Whether a module's tensors have the shapes of a scheme."""
    num_rows, num_columns = shape
    has_zero_points = name + ZERO_POINT_SUFFIX in checkpoint.names
    width = checkpoint.info(name + codes_suffix).shape[-1:]
    found = checkpoint.info(name + SCALE_SUFFIX).shape if name + SCALE_SUFFIX in checkpoint.names else None

    def fits(scheme: Scheme) -> bool:
        if has_zero_points == scheme.symmetric:
            return False
        if codes_suffix == PACKED_SUFFIX and width != (_words(num_columns, scheme.bits),):
            return False
        num_groups = -(-num_columns // (scheme.group_size or num_columns))
        return found is None or found in _scale_shapes(num_rows, num_groups)

    return fits


def _codes_of(scheme: Scheme, num_columns: int) -> StoredCodes:
    return StoredCodes(scheme.bits, min(scheme.group_size or num_columns, num_columns), not scheme.symmetric)


def _scale_shapes(num_rows: int, num_groups: int) -> tuple[tuple[int, ...], ...]:
    """The shapes that scales may have: those of a channel, or of a matrix, are written with and without axes."""
    return ((num_rows, num_groups),) if num_groups > 1 else ((num_rows, 1), (num_rows,), (1,), ())


def _scale_shape(checkpoint: Checkpoint, name: str, num_rows: int, num_groups: int) -> tuple[int, ...]:
    """The shape of a module's scales, or that which they should have."""
    shapes = _scale_shapes(num_rows, num_groups)
    found = checkpoint.info(name + SCALE_SUFFIX).shape if name + SCALE_SUFFIX in checkpoint.names else shapes[0]
    return found if found in shapes else shapes[0]


def _words(num_codes: int, bits: int) -> int:
    return -(-num_codes * bits // WORD_BITS)


def _groups(checkpoint: Checkpoint, name: str, num_columns: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The group of each input feature.

    Raises:
        TensorFormatError: the tensor has another shape or dtype.
    """
    groups = name + GROUPS_SUFFIX
    checkpoint.expect(groups, (num_columns,), ("I32",))
    values: np.ndarray[tuple[int], np.dtype[np.int32]] = checkpoint.read_bytes(groups, 0, 4 * num_columns).view("<i4")
    return values
