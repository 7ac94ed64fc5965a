"""What the stand-in of a CUDA runtime was asked to do in this process: its list of events."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum


class EventKind(IntEnum):
    """The kinds of sources/trace.h."""

    LAUNCH = 0
    COPY = 1
    CLEAR = 2
    GRAPH_LAUNCH = 3
    CAPTURE_BEGIN = 4
    CAPTURE_END = 5
    SYNCHRONIZE = 6
    ALLOCATE = 7
    FREE = 8
    REFUSAL = 9


class _Event(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("copy_kind", ctypes.c_int32),
        ("bytes", ctypes.c_int64),
        ("graph", ctypes.c_int64),
        ("name", ctypes.c_char_p),
    )


@dataclass(frozen=True, slots=True)
class Event:
    """One call.

    copy_kind: of a copy, as cudaMemcpyKind.
    num_bytes: that it copies, clears, takes or frees; of a graph's launch, the events that the graph has.
    graph: the graph that is launched, or that the call was captured into; 0: neither.
    name: of the kernel, or what was wrong.
    """

    kind: EventKind
    copy_kind: int
    num_bytes: int
    graph: int
    name: str


@dataclass(slots=True)
class Recording:
    """Events in their order."""

    events: list[Event] = field(default_factory=list)

    def of(self, kind: EventKind) -> list[Event]:
        """The events of a kind that were done, not only captured."""
        return [event for event in self.events if event.kind is kind and not (event.graph and kind < 3)]

    def captured(self) -> list[Event]:
        """Launches, copies and clears that went into graphs."""
        return [event for event in self.events if event.graph and event.kind < EventKind.GRAPH_LAUNCH]

    def launches(self) -> Counter[str]:
        """How often each kernel ran."""
        return Counter(event.name for event in self.of(EventKind.LAUNCH))


class StandIn:
    """The stand-in that this process has loaded; raises OSError if there is no CUDA runtime at all.

    Attributes:
        is_real: it is NVIDIA's library, and nothing can be recorded.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcudart.so.13")
        self.is_real = not hasattr(self._library, "standin_record")
        if not self.is_real:
            self._library.standin_num_events.restype = ctypes.c_size_t

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Record what happens inside; the events are there at the end."""
        recording = Recording()
        self._library.standin_record(1)
        try:
            yield recording
        finally:
            self._library.standin_record(0)
            recording.events.extend(self._events())

    def _events(self) -> Sequence[Event]:
        found, raw = [], _Event()
        for index in range(self._library.standin_num_events()):
            self._library.standin_event(ctypes.c_size_t(index), ctypes.byref(raw))
            name = (raw.name or b"").decode()
            found.append(Event(EventKind(raw.kind), raw.copy_kind, raw.bytes, raw.graph, name))
        return found


def is_present() -> bool:
    """Whether this process finds the stand-in: its folder is in LD_LIBRARY_PATH."""
    try:
        return not StandIn().is_real
    except OSError:
        return False
