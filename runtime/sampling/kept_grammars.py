"""Compiled guides that are kept for the next request of the same owner, bounded in number and in bytes."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from msgspec import Struct, field

from qwonnx.runtime.sampling.grammar_checker import Check

if TYPE_CHECKING:
    from llguidance import LLMatcher

# A form of a few fields takes 0.1 MB and a large one 1 MB; a text of 200 bytes can make one of 30 MB.
_MAX_BYTES = 8 << 20
_MAX_NUMBER = 64
# Whoever waited for a guide uses it at once. It must not be compiled a second time, in the engine's submit().
_AWAITED_SECONDS = 1.0


class Compilation(Struct, eq=False):
    """One guide that is compiled, or was.

    work: the compiled guide, or why it cannot be followed.
    check: the part of it that can be abandoned.
    num_callers: that still wait for it.
    num_bytes: what the compiled guide holds, as measured by its check.
    asked_at: when its first caller came, in seconds of the monotonic clock.
    ended_at: when it was compiled, in seconds of the monotonic clock.
    """

    check: Check = field(default_factory=Check)
    work: Future[LLMatcher] = field(default_factory=Future)
    num_callers: int = 0
    num_bytes: int = 0
    asked_at: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0


class KeptGrammars:
    """Compilations by key, the least recently used first. Not safe to use from several threads at a time.

    Args:
        now: seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._entries: OrderedDict[tuple[str, ...], Compilation] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_running(self) -> int:
        """Guides that are being compiled, or wait for it."""
        return sum(not entry.work.done() for entry in self._entries.values())

    @property
    def num_bytes(self) -> int:
        """What all compiled guides hold."""
        return sum(entry.num_bytes for entry in self._entries.values())

    def find(self, key: tuple[str, ...]) -> Compilation | None:
        """The compilation of a guide, which counts as used now; None if there is none, or it was abandoned."""
        entry = self._entries.get(key)
        if entry is None or entry.check.is_abandoned:
            return None
        self._entries.move_to_end(key)
        return entry

    def add(self, key: tuple[str, ...], entry: Compilation) -> None:
        """Enter a guide that begins to be compiled."""
        self._entries[key] = entry
        self._entries.move_to_end(key)
        while len(self._entries) > _MAX_NUMBER:
            self._entries.popitem(last=False)

    def settle(self, key: tuple[str, ...], entry: Compilation) -> None:
        """A guide was compiled: make room for it. One that was just compiled stays, whatever its size."""
        entry.ended_at = self._now()
        if self._entries.get(key) is entry:
            self._entries.move_to_end(key)
        excess = self.num_bytes - _MAX_BYTES
        for old_key, old in list(self._entries.items()):
            if excess <= 0:
                return
            if old.work.done() and self._now() - old.ended_at > _AWAITED_SECONDS:
                del self._entries[old_key]
                excess -= old.num_bytes

    def drop(self, key: tuple[str, ...], entry: Compilation) -> None:
        """Keep a guide no longer, unless another compilation took its place."""
        if self._entries.get(key) is entry:
            del self._entries[key]
