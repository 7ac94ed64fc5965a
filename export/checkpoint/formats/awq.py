"""AWQ matrices in the order of gemm kernels: codes of 4 bits, one scale and zero point for a group of input features.

    X.qweight    I32 [K, N / 8]    codes, packed along the output features
    X.qzeros     I32 [groups, N / 8]    zero points, packed alike
    X.scales     BF16, F16 or F32 [groups, N]

The weight has N output and K input features: weight[n, k] = (code - zero_point) * scale of k's group. From its lowest
bits, a word has the codes of the output features 0, 2, 4, 6, 1, 3, 5, 7 of its eight. The kernels take codes that
follow each other along the input features, so they are packed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qwonnx.export.checkpoint.checkpoint import FLOAT_DTYPES, Checkpoint
from qwonnx.export.checkpoint.formats.awq_config import BITS, AwqFormat
from qwonnx.export.checkpoint.formats.codes import (
    WORD_BITS,
    CodeRows,
    StoredCodes,
    dequantized,
    groups_in_order,
    pack,
    unpack,
)
from qwonnx.export.checkpoint.formats.whole_rows import WholeRows
from qwonnx.export.errors import TensorFormatError

if TYPE_CHECKING:
    import torch

SUFFIXES = (".qweight", ".qzeros", ".scales")  # after the module's name
_PER_WORD = WORD_BITS // BITS
_LOW, _HIGH = (0, 4, 1, 5), (2, 6, 3, 7)  # output features of a word, in the low and high halves of its bytes
_MIDDLE = 1 << (BITS - 1)


@dataclass(frozen=True, slots=True)
class AwqWeight(WholeRows):
    """One matrix, checked but not read yet; make one with `open`. name is the module's, without a suffix."""

    reading_bytes: ClassVar[int] = 0
    reading_bytes_per_value: ClassVar[int] = 6  # unpacked codes, and float32
    name: str
    codes: StoredCodes
    num_rows: int
    num_columns: int
    num_bytes: int
    _checkpoint: Checkpoint

    @classmethod
    def open(cls, checkpoint: Checkpoint, name: str, shape: tuple[int, ...], stored: AwqFormat) -> AwqWeight:
        """Open the matrix of a module.

        Raises:
            MissingTensorError: one of its tensors does not exist.
            TensorFormatError: one has the wrong shape or dtype.
        """
        qweight, qzeros, scales = (name + suffix for suffix in SUFFIXES)
        if len(shape) != 2 or shape[0] % _PER_WORD or shape[1] % 2:
            raise TensorFormatError(
                f"{qweight} stands for a weight of shape {list(shape)}: only matrices with a multiple of {_PER_WORD}"
                " output features can be stored so; use the config.json that was saved with the weights"
            )
        num_rows, num_columns = shape
        sizes = [num_columns if size is None else min(size, num_columns) for size in stored.group_sizes]
        found = checkpoint.info(scales).shape[:1] if scales in checkpoint.names else ()
        group_size = next((size for size in sizes if found == (-(-num_columns // size),)), sizes[0])
        num_groups = -(-num_columns // group_size)
        num_bytes = (
            checkpoint.expect(qweight, (num_columns, num_rows // _PER_WORD), ("I32",))
            + checkpoint.expect(qzeros, (num_groups, num_rows // _PER_WORD), ("I32",))
            + checkpoint.expect(scales, (num_groups, num_rows), FLOAT_DTYPES)
        )
        codes = StoredCodes(BITS, group_size, not stored.symmetric)
        return cls(name, codes, num_rows, num_columns, num_bytes, checkpoint)

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows as float32 [count, num_columns]."""
        codes = unpack(self._packed(start, count), BITS)
        scales, zero_points = self._scales(start, count), self._zero_points(start, count)
        return dequantized(codes, scales, zero_points, self.codes.group_size)

    def read_codes(self, start: int, count: int, block_size: int) -> CodeRows:
        """Rows of the stored codes, in the kernels' layout; see CodedWeight."""
        blocks = groups_in_order(self.num_columns, self.codes.group_size)[::block_size]  # the group of each block
        return CodeRows(
            codes=self._packed(start, count),
            scales=self._scales(start, count)[:, blocks],
            zero_points=pack(self._zero_points(start, count)[:, blocks], BITS),
        )

    def _packed(self, start: int, count: int) -> torch.Tensor:
        """Codes uint8 [count, num_columns / 2], in the kernels' layout."""
        octets = self._octets(SUFFIXES[0], start, count)
        even, odd = octets[:, 0::2], octets[:, 1::2]
        return _in_order((even & 0xF) | (odd << 4), (even >> 4) | (odd & 0xF0), start, count)

    def _zero_points(self, start: int, count: int) -> torch.Tensor:
        """uint8 [count, groups].

        Raises:
            TensorFormatError: config.json says that the checkpoint is symmetric, and a zero point is not the middle.
        """
        octets = self._octets(SUFFIXES[1], start, count)
        zero_points = _in_order(octets & 0xF, octets >> 4, start, count)
        if not self.codes.has_zero_points and not bool((zero_points == _MIDDLE).all()):
            raise TensorFormatError(
                f"{self.name}.qzeros has zero points other than {_MIDDLE}, and config.json says that there are none:"
                " set zero_point to true (sym to false)"
            )
        return zero_points

    def _octets(self, suffix: str, start: int, count: int) -> torch.Tensor:
        """The bytes of the words of some output features: uint8 [4 * words, lines of the tensor]."""
        import torch

        first, stop = start // _PER_WORD, -(-(start + count) // _PER_WORD)
        words = self._checkpoint.read_columns(self.name + suffix, first, stop - first)
        return words.view(torch.uint8).t().contiguous()

    def _scales(self, start: int, count: int) -> torch.Tensor:
        """float32 [count, groups]."""
        return self._checkpoint.read_columns(self.name + SUFFIXES[2], start, count).float().t().contiguous()


def awq_shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    """The shape of a module's weight, from that of its codes.

    Raises:
        TensorFormatError: its codes are not a matrix.
    """
    words = checkpoint.info(name + SUFFIXES[0]).shape
    if len(words) != 2:
        raise TensorFormatError(f"{name}{SUFFIXES[0]} has shape {list(words)} and is not a matrix: restore it")
    return words[1] * _PER_WORD, words[0]


def _in_order(low: torch.Tensor, high: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """Rows of output features from what the low and the high halves of their words' bytes have, each [4 * words, n]."""
    import torch

    width = low.shape[1]
    rows = torch.empty((low.shape[0] // 4, _PER_WORD, width), dtype=torch.uint8)
    rows[:, list(_LOW)] = low.view(-1, 4, width)
    rows[:, list(_HIGH)] = high.view(-1, 4, width)
    return rows.view(-1, width)[start % _PER_WORD :][:count]
