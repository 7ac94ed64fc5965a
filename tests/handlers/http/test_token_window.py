"""A sliding minute of tokens, compared with a list of all charges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.handlers.http.token_window import TokenWindow

pytestmark = pytest.mark.fast

_STEPS = st.lists(st.tuples(st.floats(0, 40), st.integers(0, 5000)), max_size=40)


@given(_STEPS)
def test_a_window_holds_the_last_minute_and_at_most_a_piece_more(steps: list[tuple[float, int]]) -> None:
    window, now, charges = TokenWindow(), 1000.0, []
    for pause, tokens in steps:
        now += pause
        window.charge(tokens, now)
        charges.append((now, tokens))
        exact = sum(tokens for at, tokens in charges if at > now - 60)
        longer = sum(tokens for at, tokens in charges if at > now - 60.25)
        assert exact <= window.used(now) <= longer


@given(_STEPS, st.integers(0, 5000))
def test_after_the_told_seconds_there_is_room_and_not_long_before(steps: list[tuple[float, int]], room: int) -> None:
    window, now = TokenWindow(), 0.0
    for pause, tokens in steps:
        now += pause
        window.charge(tokens, now)
    seconds = window.seconds_until(room, now)
    assert 0 <= seconds <= 60.25
    if seconds > 0.01:
        assert window.used(now + seconds - 0.01) > room
    assert window.used(now + seconds + 0.001) <= room
