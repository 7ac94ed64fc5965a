"""Make slices on several threads under an account of memory, and append them lane by lane, in order.

    the calling thread      admit a slice -> hand it out -> take events: made, appended -> keep the account
    worker threads          make a slice, or append the made slices of a lane, up to the first that is not made

Several lanes are in progress at a time, each with a few slices, so appending is not a bottleneck. A slice is admitted
only after those before it in its lane, so the first of a lane is always in progress, and appending it needs no memory:
the run makes progress under any limit. This module does not know what slices are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from qwonnx.export.weight_files.memory_budget import MemoryAccount


class Slice(Protocol):
    """A part of a lane."""

    @property
    def making_bytes(self) -> int:
        """Memory of the slice from when it is handed out until it is made."""

    @property
    def waiting_bytes(self) -> int:
        """Memory of the slice from then until it is appended."""


S = TypeVar("S", bound=Slice)
M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)


class Lane(Protocol[S, M_contra]):
    """Something that grows at its end."""

    def slices(self) -> Iterator[S]:
        """Its slices in order, at least one. Only the calling thread calls this, once, and uses the iterator."""

    def append(self, made: Sequence[M_contra], slices: Sequence[S], *, last: bool) -> None:
        """Append the results of the next slices. Called in a worker, one call at a time for a lane."""

    def appended(self, slices: Sequence[S]) -> None:
        """Called in the calling thread after `append`, and before the next."""


@dataclass(slots=True)
class _Entry(Generic[S, M]):
    """A slice in progress, and its result."""

    slice: S
    made: M | None = None


class _RunningLane(Generic[S, M]):
    """A lane, its slices that are handed out and not being appended, and the next slice to hand out."""

    def __init__(self, lane: Lane[S, M]) -> None:
        self.lane = lane
        self.entries: deque[_Entry[S, M]] = deque()
        self.is_appending = False
        self._slices = lane.slices()
        self.next = next(self._slices, None)

    def hand_out(self) -> _Entry[S, M]:
        assert self.next is not None
        entry: _Entry[S, M] = _Entry(self.next)
        self.entries.append(entry)
        self.next = next(self._slices, None)
        return entry

    def take_made(self) -> list[_Entry[S, M]]:
        """The entries that can be appended: up to the first that is not made."""
        taken = []
        while self.entries and self.entries[0].made is not None:
            taken.append(self.entries.popleft())
        return taken

    def append(self, entries: Sequence[_Entry[S, M]], *, last: bool) -> None:
        made = [entry.made for entry in entries if entry.made is not None]
        self.lane.append(made, [entry.slice for entry in entries], last=last)
        for entry in entries:
            entry.made = None  # its memory no longer counts


@dataclass(frozen=True, slots=True)
class _Event(Generic[S, M]):
    """A worker has made the one entry, or appended all entries, or failed."""

    lane: _RunningLane[S, M]
    entries: Sequence[_Entry[S, M]]
    future: Future[None]
    appended: bool


class LaneRunner(Generic[S, M]):
    """One run over lanes. All state belongs to the thread that calls `run`."""

    def __init__(
        self,
        make: Callable[[S], M],
        pool: ThreadPoolExecutor,
        account: MemoryAccount,
        *,
        num_lanes: int,
        max_slices: int,
    ) -> None:
        """
        Args:
            make: called in a worker for every slice; does not return None.
            pool: the workers.
            account: admits slices.
            num_lanes: lanes that are in progress at a time.
            max_slices: slices that are in progress at a time.
        """
        self._make = make
        self._pool = pool
        self._account = account
        self._num_lanes = num_lanes
        self._max_slices = max_slices
        self._events: SimpleQueue[_Event[S, M]] = SimpleQueue()
        self._lanes: list[_RunningLane[S, M]] = []
        self._num_slices = 0  # in progress
        self._num_jobs = 0  # submitted, and their events not taken

    def run(self, lanes: Iterable[Lane[S, M]]) -> None:
        """Make and append everything. Errors of a lane or of `make` are raised, and then jobs remain in the pool."""
        waiting = iter(lanes)
        while True:
            while len(self._lanes) < self._num_lanes and (lane := next(waiting, None)) is not None:
                self._lanes.append(_RunningLane(lane))
            self._hand_out()
            if not self._num_jobs:
                break
            event = self._events.get()
            self._num_jobs -= 1
            event.future.result()
            slices = [entry.slice for entry in event.entries]
            if event.appended:
                self._take_appended(event.lane, slices)
            else:
                self._take_made(event.lane, slices[0])
        assert not self._lanes, "lanes were left"
        assert self._account.in_flight == 0, "memory was left"

    def _hand_out(self) -> None:
        """Hand out the next slice of the lane with the fewest, as long as there is room for it."""
        while self._num_slices < self._max_slices:
            lanes = [lane for lane in self._lanes if lane.next is not None]
            lane = min(lanes, key=lambda lane: len(lane.entries), default=None)
            if lane is None or lane.next is None or not self._account.admits(lane.next.making_bytes):
                return
            entry = lane.hand_out()
            self._num_slices += 1
            self._account.take(entry.slice.making_bytes)
            self._submit(lane, [entry], appended=False)

    def _submit(self, lane: _RunningLane[S, M], entries: Sequence[_Entry[S, M]], *, appended: bool) -> None:
        if appended:
            future = self._pool.submit(lane.append, entries, last=lane.next is None and not lane.entries)
        else:
            future = self._pool.submit(self._make_entry, entries[0])
        self._num_jobs += 1
        future.add_done_callback(lambda done: self._events.put(_Event(lane, entries, done, appended)))

    def _make_entry(self, entry: _Entry[S, M]) -> None:
        entry.made = self._make(entry.slice)

    def _take_made(self, lane: _RunningLane[S, M], part: S) -> None:
        self._account.give_back(part.making_bytes - part.waiting_bytes)
        self._append(lane)

    def _take_appended(self, lane: _RunningLane[S, M], slices: Sequence[S]) -> None:
        self._num_slices -= len(slices)
        self._account.give_back(sum(part.waiting_bytes for part in slices))
        lane.is_appending = False
        lane.lane.appended(slices)
        self._append(lane)
        if lane.next is None and not lane.entries and not lane.is_appending:
            self._lanes.remove(lane)

    def _append(self, lane: _RunningLane[S, M]) -> None:
        """Append the slices that can be appended, unless the lane is busy."""
        if not lane.is_appending and (entries := lane.take_made()):
            lane.is_appending = True
            self._submit(lane, entries, appended=True)
