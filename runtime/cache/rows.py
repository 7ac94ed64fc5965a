"""Rows in plain integers: how a state of a row is laid out, what a row costs, where it moves, what all of them hold.

A row holds the states of one sequence. Nothing here knows arrays, so that who only counts need not load any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qwonnx.runtime.artifact.manifest import StateSpec

_ITEM_BYTES = {"float32": 4, "float16": 2, "int8": 1, "uint8": 1, "int32": 4, "int64": 8}


def is_growing(spec: StateSpec) -> bool:
    """True for keys and values, of which every token adds one; False for states of a fixed size."""
    return spec.kind in ("key", "value")


def row_shape(spec: StateSpec, num_tokens: int) -> tuple[int, ...]:
    """Shape of one row's state with room for so many tokens: `[num_key_value_heads, num_tokens, width]` if it grows."""
    return tuple(num_tokens if size == "max_model_len" else int(size) for size in spec.shape[1:])


def row_bytes(spec: StateSpec, num_tokens: int) -> int:
    """Bytes of one row's state with room for so many tokens."""
    return math.prod(row_shape(spec, num_tokens)) * item_bytes(spec)


def item_bytes(spec: StateSpec) -> int:
    """Bytes of one number of a state."""
    return _ITEM_BYTES[spec.dtype]


@dataclass(frozen=True, slots=True)
class RowCost:
    """Bytes of a row's fixed states, and of the keys and values of each token."""

    bytes_per_row: int
    bytes_per_token: int

    def bytes_of(self, num_tokens: int) -> int:
        """What a row of so many tokens takes."""
        return self.bytes_per_row + self.bytes_per_token * num_tokens


def row_cost(states: Sequence[StateSpec]) -> RowCost:
    """What rows with these states cost."""
    return RowCost(
        bytes_per_row=sum(row_bytes(spec, 0) for spec in states if not is_growing(spec)),
        bytes_per_token=sum(row_bytes(spec, 1) for spec in states if is_growing(spec)),
    )


@dataclass(frozen=True, slots=True)
class RowMove:
    """Row `source`, holding a sequence of num_tokens, becomes row `target`; `source` is free afterwards."""

    source: int
    target: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """The accounting at one moment: tokens in each row (None for a free one), and bytes.

    reserved_bytes is address space; used_bytes is what the rows in use need of it; touched_bytes is what has been
    written since it was last given back, and takes memory; max_bytes is what both may be.
    """

    row_lengths: tuple[int | None, ...]
    max_model_len: int
    reserved_bytes: int
    used_bytes: int
    touched_bytes: int
    max_bytes: int
