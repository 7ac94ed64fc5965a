"""What rows of running sequences cost in memory, and how much they may cost together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.machine import free_memory_bytes
from qwonnx.runtime.settings import RuntimeSettings


@dataclass(frozen=True, slots=True)
class RowBudget:
    """Bytes: of all rows together, of a row's fixed states, of the keys and values of a token."""

    max_bytes: int
    bytes_per_row: int
    bytes_per_token: int

    @property
    def max_tokens(self) -> int:
        """Tokens of a sequence that runs alone."""
        return max(0, self.max_bytes - self.bytes_per_row) // max(1, self.bytes_per_token)

    def bytes_of(self, num_tokens: int) -> int:
        """What a sequence takes."""
        return self.bytes_per_row + self.bytes_per_token * num_tokens

    def fits(self, lengths: Iterable[int]) -> bool:
        """Whether sequences of so many tokens fit."""
        return sum(map(self.bytes_of, lengths)) <= self.max_bytes


UNLIMITED = RowBudget(1 << 62, 0, 0)


def settle(states: Sequence[StateSpec], settings: RuntimeSettings, max_model_len: int) -> tuple[RowBudget, int]:
    """The budget of an engine, and how long its sequences may be.

    Asked once the model is loaded: without a setting it is half of what memory is left then, and room for one sequence
    of max_model_len tokens at least.

    Args:
        states: the manifest's.
        settings: cache_bytes, and whether max_model_len is a wish or a default.
        max_model_len: by the settings and the model.

    Raises:
        SettingsError: cache_bytes has no room for one sequence.
    """
    per_row, per_token = _bytes(states, growing=False), _bytes(states, growing=True)
    if settings.cache_bytes is None:
        free = free_memory_bytes()
        most = UNLIMITED.max_bytes if free is None else free // 2
        return RowBudget(max(most, per_row + per_token * max_model_len), per_row, per_token), max_model_len
    budget = RowBudget(settings.cache_bytes, per_row, per_token)
    needed = max_model_len if settings.max_model_len is not None else 2  # a token of prompt and one of answer
    if budget.max_tokens < needed:
        raise SettingsError(
            f"cache_bytes is {settings.cache_bytes} and one sequence of {needed} tokens takes"
            f" {budget.bytes_of(needed)}: give more, or lower max_model_len"
        )
    return budget, min(max_model_len, budget.max_tokens)


def _bytes(states: Sequence[StateSpec], *, growing: bool) -> int:
    """Of a row's keys and values for a token, or of its other states."""
    return sum(
        math.prod(size for size in spec.shape if isinstance(size, int)) * np.dtype(spec.dtype).itemsize
        for spec in states
        if (spec.kind in ("key", "value")) == growing
    )
