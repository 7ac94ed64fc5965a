"""The memory option, and the size of slices for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.export.errors import ExportError
from qwonnx.export.weight_files.memory_budget import (
    MIN_MEMORY_BYTES,
    SLICE_ALIGNMENT,
    SLICES_PER_THREAD,
    MemoryAccount,
    check_memory,
    cut_for,
)

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("num_bytes", [0, 63_000_000, 1 << 20, MIN_MEMORY_BYTES - 1])
def test_too_small_a_budget_names_the_least(num_bytes: int) -> None:
    check_memory(MIN_MEMORY_BYTES)
    with pytest.raises(ExportError, match=r"is less than the 64\.0 MB that an export needs: allow more"):
        check_memory(num_bytes)


@given(st.integers(1, 4 << 30), st.integers(1, 256), st.integers(1, 40))
def test_all_slices_under_way_fit_into_the_budget(memory: int, num_threads: int, bytes_per_value: int) -> None:
    cut = cut_for(memory, num_threads, lambda values: values * bytes_per_value)
    assert 1 <= cut.num_threads <= num_threads
    assert cut.max_values % SLICE_ALIGNMENT == 0
    fits = cut.max_slices * cut.max_values * bytes_per_value <= memory
    assert fits or (cut.num_threads, cut.max_values) == (1, SLICE_ALIGNMENT)


def test_plenty_of_memory_makes_slices_of_the_fastest_size_and_little_makes_them_smaller() -> None:
    def of(memory: int, num_threads: int) -> tuple[int, int]:
        cut = cut_for(memory, num_threads, lambda values: 11 * values)
        return cut.num_threads, cut.max_values

    assert of(2_000_000_000, 2) == of(64 << 30, 2) == (2, 1 << 20)
    assert of(2_000_000_000, 128) == (128, 1 << 18)
    assert of(MIN_MEMORY_BYTES, 2) == (2, 1 << 19)
    assert of(MIN_MEMORY_BYTES, 64) == (MIN_MEMORY_BYTES // (SLICES_PER_THREAD * 11 << 16), 1 << 16)


def test_the_account_admits_up_to_its_limit_and_one_slice_in_any_case() -> None:
    account = MemoryAccount(100)
    assert account.admits(200)
    account.take(60)
    assert account.admits(40)
    assert not account.admits(41)
    account.take(40)
    account.give_back(90)
    assert (account.in_flight, account.peak) == (10, 100)
