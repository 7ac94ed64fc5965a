"""Rows in plain integers: the layout of a row's states, its cost in bytes, its moves, and an account of all rows.

A row holds the states of one sequence. This module does not know arrays, so code that only counts need not load numpy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from qwonnx.runtime.artifact.manifest import StateSpec

_ITEM_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8e4m3fn": 1,
    "int8": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
}


def is_growing(spec: StateSpec) -> bool:
    """True for keys and values, which grow with every token; False for states of a fixed size."""
    return spec.kind in ("key", "value")


def row_shape(spec: StateSpec, num_tokens: int) -> tuple[int, ...]:
    """Shape of one row's state for num_tokens tokens: `[num_key_value_heads, num_tokens, width]` if it grows."""
    return tuple(num_tokens if size == "max_model_len" else int(size) for size in spec.shape[1:])


def row_bytes(spec: StateSpec, num_tokens: int) -> int:
    """Bytes of one row's state for num_tokens tokens."""
    return math.prod(row_shape(spec, num_tokens)) * item_bytes(spec)


def item_bytes(spec: StateSpec) -> int:
    """Bytes of one number of a state."""
    return _ITEM_BYTES[spec.dtype]


class RowCost(Struct, frozen=True):
    """Bytes of a row's fixed states, and of the keys and values of each token."""

    bytes_per_row: int
    bytes_per_token: int

    def bytes_of(self, num_tokens: int) -> int:
        """Bytes of a row of num_tokens tokens."""
        return self.bytes_per_row + self.bytes_per_token * num_tokens


def row_cost(states: Sequence[StateSpec]) -> RowCost:
    """The cost of rows with these states."""
    return RowCost(
        bytes_per_row=sum(row_bytes(spec, 0) for spec in states if not is_growing(spec)),
        bytes_per_token=sum(row_bytes(spec, 1) for spec in states if is_growing(spec)),
    )


class RowMove(Struct, frozen=True):
    """Row `source`, holding a sequence of num_tokens, becomes row `target`; `source` is free afterwards."""

    source: int
    target: int
    num_tokens: int


class CacheSnapshot(Struct, frozen=True):
    """The accounting at one moment: tokens in each row (None for a free one), and bytes.

    reserved_bytes is address space; used_bytes is the part that the rows in use need; touched_bytes was written and not
    given back, so it takes memory; max_bytes limits both.
    """

    row_lengths: tuple[int | None, ...]
    max_model_len: int
    reserved_bytes: int
    used_bytes: int
    touched_bytes: int
    max_bytes: int
