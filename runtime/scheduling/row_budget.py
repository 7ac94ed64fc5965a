"""The memory that rows of running sequences need, and the limit for all of them together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.rows import RowCost, row_cost
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.machine import free_memory_bytes
from qwonnx.runtime.settings import RuntimeSettings


class RowBudget(RowCost, frozen=True):
    """The cost of a row, and the bytes that all rows may take together."""

    max_bytes: int

    @property
    def max_tokens(self) -> int:
        """Limit for the tokens of a sequence that runs alone."""
        return max(0, self.max_bytes - self.bytes_per_row) // max(1, self.bytes_per_token)

    def fits(self, lengths: Iterable[int]) -> bool:
        """Whether sequences of these lengths fit."""
        return sum(map(self.bytes_of, lengths)) <= self.max_bytes


# Of free memory, for rows. The rest is for what a step computes with.
SHARE_OF_DEVICE = 0.85

UNLIMITED = RowBudget(bytes_per_row=0, bytes_per_token=0, max_bytes=1 << 62)


def settle_reserved(
    states: Sequence[StateSpec], settings: RuntimeSettings, max_model_len: int, free_bytes: int
) -> tuple[RowBudget, int]:
    """As settle(), for a device that reserves all rows when they are made, the spare one too.

    Args:
        states, settings, max_model_len: as of settle().
        free_bytes: of the device, after the model is loaded.

    Raises:
        SettingsError: there is no room for the rows.
    """
    cost = row_cost(states)
    limit = int(free_bytes * SHARE_OF_DEVICE) if settings.cache_bytes is None else settings.cache_bytes
    num_rows = settings.max_num_seqs + 1
    room = max(0, limit // num_rows - cost.bytes_per_row) // max(1, cost.bytes_per_token)
    needed = max_model_len if settings.max_model_len is not None else 2
    if room < needed:
        raise SettingsError(
            f"{settings.max_num_seqs} sequences of {needed} tokens, and a spare row, take"
            f" {num_rows * cost.bytes_of(needed)} bytes of the device, and {limit} may be used: lower max_num_seqs or"
            " max_model_len"
        )
    length = min(max_model_len, room)
    return RowBudget(cost.bytes_per_row, cost.bytes_per_token, num_rows * cost.bytes_of(length)), length


def settle(
    states: Sequence[StateSpec], settings: RuntimeSettings, max_model_len: int, free_bytes: int | None = None
) -> tuple[RowBudget, int]:
    """The budget of an engine, and the limit for the tokens of a sequence.

    Call this after the model is loaded. Without a setting, the budget is half of the free memory, and at least enough
    for one sequence of max_model_len tokens.

    Args:
        states: the manifest's.
        settings: cache_bytes, and max_model_len: None means that it may be lowered to fit.
        max_model_len: limit by the settings and the model.
        free_bytes: what a limit of the process leaves; None: no limit but the system's.

    Raises:
        SettingsError: cache_bytes has no room for one sequence.
    """
    cost = row_cost(states)
    if settings.cache_bytes is None:
        free = min((each for each in (free_memory_bytes(), free_bytes) if each is not None), default=None)
        most = UNLIMITED.max_bytes if free is None else free // 2
        max_bytes = max(most, cost.bytes_of(max_model_len))
        return RowBudget(cost.bytes_per_row, cost.bytes_per_token, max_bytes), max_model_len
    budget = RowBudget(cost.bytes_per_row, cost.bytes_per_token, settings.cache_bytes)
    needed = max_model_len if settings.max_model_len is not None else 2  # a token of prompt and one of answer
    if budget.max_tokens < needed:
        raise SettingsError(
            f"cache_bytes is {settings.cache_bytes} and one sequence of {needed} tokens takes"
            f" {budget.bytes_of(needed)}: give more, or lower max_model_len"
        )
    return budget, min(max_model_len, budget.max_tokens)
