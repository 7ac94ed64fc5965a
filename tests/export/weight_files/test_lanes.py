"""Lanes: every slice once and in order, within the account, for any duration of the steps."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.export.weight_files.lanes import LaneRunner
from qwonnx.export.weight_files.memory_budget import MemoryAccount

pytestmark = pytest.mark.fast


@dataclass(frozen=True, slots=True)
class _Part:
    lane: int
    number: int
    making_bytes: int
    waiting_bytes: int


@dataclass(slots=True)
class _List:
    """A lane that keeps its slices, and checks that only one thread appends at a time."""

    parts: Sequence[_Part]
    kept: list[str] = field(default_factory=list)
    reported: list[_Part] = field(default_factory=list)
    ended: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def slices(self) -> Iterator[_Part]:
        return iter(self.parts)

    def append(self, made: Sequence[str], slices: Sequence[_Part], *, last: bool) -> None:
        assert self.lock.acquire(blocking=False), "two threads append to one lane"
        try:
            assert not self.ended
            assert list(made) == [_name(part) for part in slices]
            time.sleep(random.random() * 0.001)
            self.kept += made
            self.ended = last
        finally:
            self.lock.release()

    def appended(self, slices: Sequence[_Part]) -> None:
        assert threading.current_thread() is threading.main_thread()
        self.reported += slices


def _name(part: _Part) -> str:
    return f"{part.lane}.{part.number}"


def _slow_name(part: _Part) -> str:
    time.sleep(random.random() * 0.001)
    return _name(part)


def _lanes(lengths: Sequence[int], making_bytes: int) -> list[_List]:
    return [
        _List([_Part(lane, number, making_bytes + number % 3, making_bytes // 2) for number in range(length)])
        for lane, length in enumerate(lengths)
    ]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=6), st.integers(1, 4), st.integers(1, 9), st.integers(10, 100))
def test_every_slice_is_appended_once_and_in_order_within_the_limit(
    lengths: list[int], num_threads: int, max_slices: int, limit: int
) -> None:
    lanes = _lanes(lengths, making_bytes=8)
    account = MemoryAccount(limit)
    with ThreadPoolExecutor(num_threads) as pool:
        LaneRunner(_slow_name, pool, account, num_lanes=num_threads, max_slices=max_slices).run(lanes)
    for lane in lanes:
        assert lane.kept == [_name(part) for part in lane.parts]
        assert lane.reported == lane.parts
        assert lane.ended
    assert account.in_flight == 0
    assert account.peak <= min(limit, max_slices * 10)


def test_a_slow_lane_does_not_hold_up_the_others() -> None:
    lanes = _lanes([3, 40], making_bytes=1)
    gate = threading.Event()

    def make(part: _Part) -> str:
        if part.lane == 0 and part.number == 0:
            assert gate.wait(10), "the other lane did not get to its end"
        elif part.lane == 1 and part.number == 39:
            gate.set()
        return _name(part)

    with ThreadPoolExecutor(3) as pool:
        LaneRunner(make, pool, MemoryAccount(1000), num_lanes=2, max_slices=8).run(lanes)
    assert [len(lane.kept) for lane in lanes] == [3, 40]


@pytest.mark.parametrize("where", ["make", "append", "appended"])
def test_an_error_anywhere_ends_the_run_with_it(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    lanes = _lanes([5, 5, 5], making_bytes=1)

    def fail(*arguments: object, **named: object) -> str:
        raise KeyError(where)

    if where != "make":
        monkeypatch.setattr(_List, where, fail)
    make = fail if where == "make" else _slow_name
    with ThreadPoolExecutor(2) as pool:
        runner = LaneRunner(make, pool, MemoryAccount(100), num_lanes=2, max_slices=4)
        with pytest.raises(KeyError, match=where):
            runner.run(lanes)
        pool.shutdown(wait=False, cancel_futures=True)
