"""Items that are kept for references: by owner, within a limit, the last used ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.handlers.responses.objects import MessageItem, OutputText
from qwonnx.handlers.responses.recent_items import RecentItems

pytestmark = pytest.mark.fast


def message(item_id: str, text: str = "a") -> MessageItem:
    return MessageItem(item_id, [OutputText(text)], "completed")


def test_an_item_is_found_by_its_owner_alone() -> None:
    recent = RecentItems(10_000)
    recent.keep("ada", [message("msg_1"), message("msg_2", "b")])
    found = recent.find("ada", "msg_2")
    assert found is not None
    assert json.loads(found)["content"][0]["text"] == "b"
    assert recent.find("bob", "msg_2") is None
    assert recent.find("ada", "msg_3") is None


def test_the_least_recently_used_item_goes_first() -> None:
    recent = RecentItems(1600)
    recent.keep("", [message("msg_1"), message("msg_2")])
    assert recent.find("", "msg_1") is not None
    recent.keep("", [message("msg_3")])
    assert [recent.find("", f"msg_{number}") is not None for number in (1, 2, 3)] == [True, False, True]


def test_nothing_is_kept_without_room() -> None:
    recent = RecentItems(0)
    recent.keep("", [message("msg_1")])
    assert (recent.find("", "msg_1"), recent.num_bytes) == (None, 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 2000)), max_size=20))
def test_items_never_take_more_than_the_limit(kept: list[tuple[str, str, int]]) -> None:
    recent = RecentItems(4000)
    for owner, item_id, length in kept:
        recent.keep(owner, [message(item_id, "a" * length)])
        assert 0 <= recent.num_bytes <= 4000
    found = [text for owner in "ab" for item_id in "xyz" if (text := recent.find(owner, item_id)) is not None]
    assert recent.num_bytes == sum(len(text) + 512 for text in found)
