"""The budget of all bodies."""

from __future__ import annotations

import pytest

from qwonnx.handlers.http.body_budget import BodyBudget

pytestmark = pytest.mark.fast


def test_bytes_are_taken_until_none_are_left_and_given_back() -> None:
    budget = BodyBudget(10)
    assert budget.take(4)
    assert budget.take(6)
    assert not budget.take(1)
    assert budget.take(0)
    budget.give_back(6)
    assert budget.num_taken == 4
    assert not budget.take(7)
    assert budget.take(6)
    with pytest.raises(AssertionError, match="more was given back"):
        budget.give_back(11)
