"""The prefix cache by itself: what it finds, what it keeps under its budget, and its accounting."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwonnx.runtime.cache.prefix_cache import PrefixCache, Snapshot

pytestmark = pytest.mark.fast


@dataclass(frozen=True, slots=True)
class Sized:
    """A segment with only the properties that the cache may use."""

    num_tokens: int

    @property
    def num_bytes(self) -> int:
        return 8 * self.num_tokens + 16


def size_of(num_tokens: int) -> int:
    """Bytes of a snapshot: the segment, and four bytes for each token."""
    return Sized(num_tokens).num_bytes + 4 * num_tokens


def add(cache: PrefixCache, *pieces: str, owner: str = "") -> Snapshot | None:
    """Keep a text at the end of each of its pieces, as a running sequence would."""
    node: Snapshot | None = None
    since = ""  # the last snapshot of the sequence
    for piece in pieces:
        since += piece
        following = cache.store(node, [ord(letter) for letter in since], Sized(len(since)), owner)
        if following is not None:
            cache.pin(following)
            if node is not None:
                cache.unpin(node)
            node, since = following, ""
    if node is not None:
        cache.unpin(node)
    assert cache.violations() == []
    return node


def found(cache: PrefixCache, text: str, owner: str = "") -> int:
    """Tokens of a text that need not be computed."""
    node = cache.find([ord(letter) for letter in text], owner)
    return 0 if node is None else node.position


def test_the_longest_beginning_is_found_and_one_token_is_always_left() -> None:
    cache = PrefixCache(1 << 20)
    add(cache, "system ", "first ", "second")
    add(cache, "system ", "other")
    assert found(cache, "system first second third") == 19
    assert found(cache, "system first second") == 13
    assert found(cache, "system first thing") == 13
    assert found(cache, "system others") == 12
    assert found(cache, "system") == 0
    assert found(cache, "a system first") == 0
    assert cache.account().tokens_found == 19 + 13 + 13 + 12


def test_texts_that_were_cut_differently_are_found_by_either_cut() -> None:
    cache = PrefixCache(1 << 20)
    add(cache, "abcd", "efgh")
    add(cache, "ab", "cdefghij", "kl")
    assert found(cache, "abcdefghijkl!") == 12
    assert found(cache, "abcdefghi") == 8
    assert found(cache, "abcx") == 2


def test_ids_are_compared_whole() -> None:
    cache = PrefixCache(1 << 20)
    cache.store(None, [1, 256], Sized(2), "")
    assert cache.find([1, 256, 5], "") is not None
    assert cache.find([257, 0, 5], "") is None
    assert cache.find([1, 65537, 5], "") is None


def test_the_same_position_is_stored_once() -> None:
    cache = PrefixCache(1 << 20)
    assert add(cache, "abc", "def") is add(cache, "abc", "def")
    assert cache.account().num_snapshots == 2
    assert cache.account().used_bytes == 2 * size_of(3)


def test_what_was_used_longest_ago_goes_first_and_chains_from_their_end() -> None:
    cache = PrefixCache(4 * size_of(3))
    add(cache, "abc", "def")
    add(cache, "ghi", "jkl")
    assert found(cache, "abc?") == 3
    add(cache, "mno")
    assert (found(cache, "abcdef?"), found(cache, "ghijkl?"), found(cache, "mno?")) == (3, 6, 3)


def test_snapshots_in_use_stay_and_what_has_no_room_is_not_kept() -> None:
    cache = PrefixCache(2 * size_of(3) + size_of(1))
    node = add(cache, "abc", "def")
    assert node is not None
    cache.pin(node)
    assert not cache.has_room_for(size_of(3))
    assert add(cache, "ghi") is None
    assert add(cache, "j") is not None
    assert found(cache, "abcdef?") == 6
    cache.unpin(node)
    assert add(cache, "ghi") is not None
    assert cache.account().num_pins == 0


def test_permanent_ones_never_go_and_take_nothing_of_the_budget() -> None:
    cache = PrefixCache(2 * size_of(3))
    for text in ("system", "system two", "other"):
        cache.add_permanent([ord(letter) for letter in text], Sized(len(text)))
    assert (cache.account().used_bytes, cache.account().num_permanent) == (0, 3)
    for text in ("abc", "def", "ghi", "jkl"):
        add(cache, text)
    parent = cache.find([ord(letter) for letter in "system!"], "")
    assert parent is not None
    cache.pin(parent)
    assert cache.has_room_for(2 * size_of(3))
    child = cache.store(parent, [ord(letter) for letter in "..."], Sized(3), "")
    cache.unpin(parent)
    assert child is not None
    assert (found(cache, "system...?"), found(cache, "system two?"), found(cache, "other?")) == (9, 10, 5)
    for text in ("mno", "pqr"):
        add(cache, text)
    assert (found(cache, "system...?"), found(cache, "system two?"), found(cache, "other?")) == (6, 10, 5)
    assert cache.account().num_snapshots == 5
    assert cache.violations() == []


def test_an_owner_finds_its_snapshots_and_permanent_ones_and_nobody_elses() -> None:
    cache = PrefixCache(1 << 20)
    cache.add_permanent([ord(letter) for letter in "system "], Sized(7))
    add(cache, "secret", owner="a")
    parent = cache.find([ord(letter) for letter in "system secret"], "a")
    assert parent is not None
    assert parent.is_permanent
    cache.store(parent, [ord(letter) for letter in "secret"], Sized(6), "a")
    for owner, expected in (("a", (6, 13)), ("b", (0, 7)), ("", (0, 7))):
        assert (found(cache, "secret?", owner), found(cache, "system secret?", owner)) == expected
    add(cache, "secret", owner="b")
    assert found(cache, "secret?", "b") == 6
    assert add(cache, "system ", owner="b") is parent, "what is permanent is not stored again"
    assert cache.account().num_snapshots == 4
    assert cache.violations() == []


def test_a_broken_one_is_not_found_and_goes_with_all_that_share_it() -> None:
    cache = PrefixCache(1 << 20)
    for text in ("abc", "other"):
        cache.add_permanent([ord(letter) for letter in text], Sized(len(text)))
    add(cache, "one ", "two ", "three ")
    last = add(cache, "one ", "two ", "four ")
    assert last is not None
    cache.pin(last)  # a running sequence continues it
    cache.set_aside(last)
    assert found(cache, "one two four five") == found(cache, "one two three four") == found(cache, "one x") == 0
    assert cache.store(last, [1], Sized(1), "") is None
    assert cache.store(None, [ord(letter) for letter in "one "], Sized(4), "") is None, "it is still in use"
    assert cache.account().num_snapshots == 5
    cache.unpin(last)
    assert cache.account().num_snapshots == 2
    assert add(cache, "one ") is not None
    assert cache.violations() == []


def test_a_permanent_one_is_set_aside_only_if_nothing_else_can_be_the_cause() -> None:
    cache = PrefixCache(1 << 20)
    cache.add_permanent([ord("a")], Sized(1))
    parent = cache.find([ord("a"), ord("b")], "")
    child = cache.store(parent, [ord("b")], Sized(1), "")
    assert parent is not None
    assert child is not None
    cache.set_aside(child)
    assert (found(cache, "abc"), found(cache, "ax")) == (1, 1)
    cache.set_aside(parent)
    assert found(cache, "ax") == 0
    assert cache.account().num_snapshots == 1


def test_without_a_budget_nothing_is_kept() -> None:
    cache = PrefixCache(0)
    assert add(cache, "abc") is None
    assert found(cache, "abcd") == 0


@settings(deadline=None, max_examples=200)
@given(
    texts=st.lists(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=4), max_size=12),
    baked=st.lists(st.text("ab", min_size=1, max_size=4), unique=True, max_size=2),
    budget=st.integers(0, 12),
    wanted=st.text("ab", max_size=10),
)
@example(texts=[["aa", "aaa", "a"]], baked=[], budget=2, wanted="aaaa")  # no room for the second piece
def test_nothing_is_found_that_was_not_kept_and_with_room_everything_is(
    texts: list[list[str]], baked: list[str], budget: int, wanted: str
) -> None:
    small, large = PrefixCache(budget * size_of(2)), PrefixCache(1 << 20)
    for text in baked:
        for cache in (small, large):
            cache.add_permanent([ord(letter) for letter in text], Sized(len(text)))
    permanent = {0, *(len(text) for text in baked if wanted.startswith(text) and len(text) < len(wanted))}
    kept = set(permanent)
    for pieces in texts:
        add(small, *pieces)
        add(large, *pieces)
        for count in range(1, len(pieces) + 1):
            beginning = "".join(pieces[:count])
            if wanted.startswith(beginning) and len(beginning) < len(wanted):
                kept.add(len(beginning))
    assert found(large, wanted) == max(kept)
    assert found(small, wanted) in kept
    assert found(small, wanted) >= max(permanent)
    assert small.account().num_permanent == len(baked)
