"""Items that are kept for references: by owner, within a limit, the last used ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.handlers.chat.recent_items import RecentItems

pytestmark = pytest.mark.fast


def test_an_item_is_found_by_its_owner_alone() -> None:
    recent = RecentItems(10_000)
    recent.keep("ada", "msg_1", b"a")
    recent.keep("ada", "msg_2", b"b")
    assert recent.find("ada", "msg_2") == b"b"
    assert recent.find("bob", "msg_2") is None
    assert recent.find("ada", "msg_3") is None


def test_the_least_recently_used_item_goes_first() -> None:
    recent = RecentItems(1600)
    recent.keep("", "msg_1", b"a" * 200)
    recent.keep("", "msg_2", b"b" * 200)
    assert recent.find("", "msg_1") is not None
    recent.keep("", "msg_3", b"c" * 200)
    assert [recent.find("", f"msg_{number}") is not None for number in (1, 2, 3)] == [True, False, True]


def test_nothing_is_kept_without_room() -> None:
    recent = RecentItems(0)
    recent.keep("", "msg_1", b"a")
    assert (recent.find("", "msg_1"), recent.num_bytes) == (None, 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 2000)), max_size=20))
def test_items_never_take_more_than_the_limit(kept: list[tuple[str, str, int]]) -> None:
    recent = RecentItems(4000)
    for owner, item_id, length in kept:
        recent.keep(owner, item_id, b"a" * length)
        assert 0 <= recent.num_bytes <= 4000
    found = [text for owner in "ab" for item_id in "xyz" if (text := recent.find(owner, item_id)) is not None]
    assert recent.num_bytes == sum(len(text) + 512 for text in found)
