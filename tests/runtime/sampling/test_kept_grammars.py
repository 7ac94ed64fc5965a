"""Compiled guides are kept within a number and within bytes."""

from __future__ import annotations

import pytest

from qwonnx.runtime.sampling.kept_grammars import Compilation, KeptGrammars

pytestmark = pytest.mark.fast

_MEGABYTE = 1 << 20


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _key(name: str) -> tuple[str, ...]:
    return ("owner", "regex", name)


def _compiled(kept: KeptGrammars, name: str, num_bytes: int) -> Compilation:
    entry = Compilation(num_bytes=num_bytes)
    kept.add(_key(name), entry)
    entry.work.set_result(None)  # type: ignore[arg-type]
    kept.settle(_key(name), entry)
    return entry


def test_small_guides_are_kept_up_to_their_number() -> None:
    kept = KeptGrammars()
    entries = [_compiled(kept, str(number), 1000) for number in range(80)]
    assert len(kept) == 64
    assert kept.find(_key("15")) is None
    assert kept.find(_key("16")) is entries[16]


def test_large_guides_make_room_for_each_other() -> None:
    clock = Clock()
    kept = KeptGrammars(clock)
    for number in range(20):
        clock.now += 2
        _compiled(kept, str(number), 2 * _MEGABYTE)
        assert kept.num_bytes <= 8 * _MEGABYTE
    assert [number for number in range(20) if kept.find(_key(str(number)))] == [16, 17, 18, 19]


def test_the_least_recently_used_goes_first() -> None:
    clock = Clock()
    kept = KeptGrammars(clock)
    _compiled(kept, "a", 3 * _MEGABYTE)
    _compiled(kept, "b", 3 * _MEGABYTE)
    clock.now = 2
    assert kept.find(_key("a"))
    _compiled(kept, "c", 3 * _MEGABYTE)
    assert kept.find(_key("b")) is None
    assert kept.find(_key("a"))


def test_one_that_was_just_compiled_stays_until_it_was_used_whatever_its_size() -> None:
    clock = Clock()
    kept = KeptGrammars(clock)
    huge = _compiled(kept, "huge", 40 * _MEGABYTE)
    clock.now = 0.5
    _compiled(kept, "small", 1)
    assert kept.find(_key("huge")) is huge
    clock.now = 2
    _compiled(kept, "other", 1)
    assert kept.find(_key("huge")) is None
    assert len(kept) == 1  # the small one was older


def test_one_that_is_still_compiled_is_not_dropped_for_bytes() -> None:
    clock = Clock()
    kept = KeptGrammars(clock)
    running = Compilation()
    kept.add(_key("running"), running)
    clock.now = 5
    _compiled(kept, "huge", 40 * _MEGABYTE)
    assert kept.num_running == 1
    assert kept.find(_key("running")) is running


def test_an_abandoned_one_is_not_found_and_its_successor_is_not_dropped_with_it() -> None:
    kept = KeptGrammars()
    first = Compilation()
    kept.add(_key("a"), first)
    first.check.abandon()
    assert kept.find(_key("a")) is None
    second = _compiled(kept, "a", 1)
    kept.drop(_key("a"), first)
    assert kept.find(_key("a")) is second
