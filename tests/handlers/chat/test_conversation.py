"""Conversations with system messages anywhere: folded into one that templates take, turn by turn the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.handlers.chat.conversation import folded

pytestmark = pytest.mark.fast

Said = tuple[str, str]


def message(role: str, content: str, calls: int = 0) -> dict[str, Any]:
    return {"role": role, "content": content} | ({"tool_calls": [{}] * calls} if calls else {})


S1, S2, U1, U2 = (
    message(role, text) for role, text in (("system", "s"), ("system", "t"), ("user", "u"), ("user", "v"))
)
A, CALLS, R1, R2 = message("assistant", "a"), message("assistant", "", 2), message("tool", "1"), message("tool", "2")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([U1], [("user", "u")]),
        ([S1, S2, U1], [("system", "s\n\nt"), ("user", "u")]),
        ([S1], [("system", "s")]),
        ([message("system", ""), S2, U1], [("system", "t"), ("user", "u")]),
        ([U1, S1, A], [("user", "u\n\ns"), ("assistant", "a")]),
        ([U1, S1, S2], [("user", "u\n\ns\n\nt")]),
        ([U1, A, S1, U2], [("user", "u"), ("assistant", "a"), ("user", "s\n\nv")]),
        ([U1, A, S1], [("user", "u"), ("assistant", "a"), ("user", "s")]),
        ([U1, A, S1, A], [("user", "u"), ("assistant", "a"), ("user", "s"), ("assistant", "a")]),
        ([U1, CALLS, S1, R1, S2, R2], [("user", "u"), ("assistant", ""), ("tool", "1"), ("tool", "2\n\ns\n\nt")]),
        (
            [U1, CALLS, R1, R2, S1, A],
            [("user", "u"), ("assistant", ""), ("tool", "1"), ("tool", "2\n\ns"), ("assistant", "a")],
        ),
        ([U1, CALLS, R1, S1, U2], [("user", "u"), ("assistant", ""), ("tool", "1"), ("user", "s\n\nv")]),
    ],
)
def test_a_later_system_message_is_folded_into_its_neighbour(
    messages: list[dict[str, Any]], expected: list[Said]
) -> None:
    before = [dict(each) for each in messages]
    assert [(each["role"], each["content"]) for each in folded(messages)] == expected
    assert messages == before, "the messages are not changed"


TURNS = st.lists(
    st.sampled_from(
        [[U1, A], [U1, S1, A], [U1, A, S1], [U2, CALLS, R1, R2, A], [U2, CALLS, R1, R2, S1, A], [U1, CALLS, S2, R1, R2]]
    ),
    min_size=1,
    max_size=6,
)


@given(leading=st.lists(st.sampled_from([S1, S2]), max_size=2), turns=TURNS)
def test_the_messages_before_an_answer_stay_when_the_conversation_goes_on(
    leading: list[dict[str, Any]], turns: list[list[dict[str, Any]]]
) -> None:
    messages = [*leading, *(each for turn in turns for each in turn)]
    whole = folded(messages)
    assert sum(each["role"] == "system" for each in whole) == bool(leading)
    assert all(each["role"] != "system" for each in whole[1:])
    for place, each in enumerate(messages):
        if each["role"] == "assistant":
            asked = folded(messages[:place])
            assert whole[: len(asked)] == asked
