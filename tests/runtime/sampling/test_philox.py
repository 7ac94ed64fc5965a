"""Our numbers beside numpy's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.runtime.sampling import philox
from qwonnx.runtime.sampling.philox import Philox

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 2**64, 2**128 - 1, 2**200 + 5])
def test_a_seed_gives_the_numbers_of_numpy(seed: int) -> None:
    ours, theirs = Philox(seed), np.random.Generator(np.random.Philox(seed))
    assert [ours.random() for _ in range(1000)] == theirs.random(1000).tolist()


@given(st.integers(0, 2**160))
def test_any_seed_gives_the_numbers_of_numpy(seed: int) -> None:
    ours, theirs = Philox(seed), np.random.Generator(np.random.Philox(seed))
    assert [ours.random() for _ in range(9)] == [theirs.random() for _ in range(9)]


def test_a_counter_of_several_words_gives_the_numbers_of_numpy() -> None:
    counter, key = 2**192 + 2**128 + 2**64 + 5, (2**64 - 1, 3)
    theirs = np.random.Philox(counter=counter - 1, key=key[0] | key[1] << 64)
    assert philox._block(counter, philox._round_keys(*key)) == theirs.random_raw(4).tolist()
