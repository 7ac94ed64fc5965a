"""Codes of quantised weights: their format, rows of them in the kernels' layout, and words of them.

A code of 4 or 8 bits stands for (code - zero_point) * scale of its group of input features. The kernels' layout
(quantize.py) has two codes of 4 bits in a byte, the even input feature in the low half. A 32-bit word of codes that
follow each other along the input features, lowest bits first, has this layout already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """A checkpoint's format of codes: bits per code, and input features per group (the last group may have fewer)."""

    bits: int
    group_size: int
    has_zero_points: bool  # false: all are 2 ** (bits - 1)


@dataclass(frozen=True, slots=True)
class CodeRows:
    """Rows of a quantised weight of K input features in the kernels' layout, in blocks of block_size input features.

    codes are uint8 [rows, K * bits / 8], scales float32 [rows, K / block_size], zero points uint8
    [rows, ceil(K / block_size * bits / 8)], packed as codes are.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor


class WithoutCodes:
    """What formats have in common of which no kernel takes the codes, and which have no rules for modules.

    See SourceQuantization.
    """

    __slots__ = ()

    @property
    def has_codes(self) -> bool:
        return False

    @property
    def num_rules(self) -> int:
        return 0

    def check_patterns(self) -> None:
        """There are none."""

    def foreseen_codes(self, module: str, num_columns: int) -> StoredCodes | None:
        """None: no kernel takes these codes."""
        return None


@runtime_checkable
class CodedWeight(Protocol):
    """A weight whose codes can be kept."""

    def read_codes(self, start: int, count: int, block_size: int) -> CodeRows:
        """Rows of the stored codes, in the kernels' layout.

        block_size divides the number of columns, and the group size unless there is one group. Blocks that are smaller
        than their group repeat its scale and zero point: the weight stays the same to the bit.
        """
        ...


@lru_cache(maxsize=16)
def groups_in_order(num_columns: int, group_size: int) -> torch.Tensor:
    """The group of each input feature, int32 [num_columns]. The result is cached: do not write to it."""
    import torch

    return torch.arange(num_columns, dtype=torch.int32) // group_size


def dequantized(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    group_size: int,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weights that codes stand for, float32 [rows, K].

    Args:
        codes: uint8 [rows, K].
        scales: float32 [rows, groups].
        zero_points: uint8 [rows, groups].
        group_size: input features of a group.
        groups: the group of each input feature, int32 [K]; None: they follow each other.
    """
    num_rows, num_columns = codes.shape
    if groups is not None:
        return codes.float().sub_(zero_points.index_select(1, groups)).mul_(scales.index_select(1, groups))
    # Each piece lies in one group. It is a whole group, unless the last group is shorter.
    piece = math.gcd(num_columns, group_size)
    in_order = groups_in_order(num_columns, group_size)[::piece]
    values = codes.float().view(num_rows, -1, piece)
    return values.sub_(zero_points[:, in_order, None]).mul_(scales[:, in_order, None]).view(num_rows, -1)


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Words int32 [rows, n], or bytes uint8 [rows, n] -> uint8 [rows, codes], lowest bits first."""
    import torch

    octets = packed.view(torch.uint8)
    return octets if bits == 8 else torch.stack((octets & 0xF, octets >> 4), -1).flatten(-2)


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [rows, n] of 4 or 8 significant bits -> uint8 [rows, ceil(n * bits / 8)], lowest bits first."""
    import torch

    if bits == 8:
        return values
    if values.shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return values[:, 0::2] | (values[:, 1::2] << 4)
