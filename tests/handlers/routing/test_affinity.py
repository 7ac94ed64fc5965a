"""What a request continues, in the forms of all chat APIs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwonnx.handlers.routing.affinity import Affinity, affinity_of

pytestmark = pytest.mark.fast

LONG = "You are a clerk. " * 30
USER = {"role": "user", "content": "Where?"}


def of(**body: Any) -> Affinity:
    return affinity_of(json.dumps(body).encode())


def system(text: str, role: str = "system") -> dict[str, str]:
    return {"role": role, "content": text}


def test_every_turn_of_a_conversation_has_one_affinity() -> None:
    first = of(messages=[system(LONG), USER])
    assert first.beginning is not None
    assert first.conversation is not None
    later = of(messages=[system(LONG), USER, {"role": "assistant", "content": "There."}, system("Now."), USER], n=1)
    assert later == first


def test_another_first_message_is_another_conversation_with_the_same_beginning() -> None:
    one, other = of(messages=[system(LONG), USER]), of(messages=[system(LONG), {**USER, "content": "When?"}])
    assert one.beginning == other.beginning
    assert one.conversation != other.conversation
    assert of(messages=[system(LONG + "!"), USER]).beginning != one.beginning
    assert of(messages=[system(LONG), USER], tools=[{"type": "function"}]).beginning != one.beginning


def test_a_short_beginning_binds_no_other_conversation() -> None:
    assert of(messages=[system("Be brief."), USER]).beginning is None
    assert of(messages=[system("Be brief."), USER]).conversation is not None


def test_other_apis_have_their_own_fields() -> None:
    anthropic = of(system=[{"type": "text", "text": LONG}], messages=[USER])
    responses = of(instructions=LONG, input="Where?")
    items = of(instructions=LONG, input=[USER, {"type": "reasoning"}, {"type": "function_call"}])
    assert None not in (anthropic.beginning, anthropic.conversation)
    assert responses == items != Affinity()
    assert of(messages=[system(LONG, "developer"), USER]).beginning is not None
    assert of(prompt="Once upon a time").conversation == of(prompt=["Once upon a time"]).conversation is not None


@pytest.mark.parametrize(
    "body",
    [b"", b"nonsense", b"[1]", b"[" * 5000, b'{"messages": 7}', b'{"messages": [7, null]}', b'{"prompt": [1, 2]}'],
)
def test_a_body_that_is_no_chat_has_none(body: bytes) -> None:
    assert affinity_of(body).conversation is None
