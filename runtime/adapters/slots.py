"""The slots from which a running model reads adapters: which adapter lies in which, and which are in use.

A step names a slot for each of its rows; slot 0 is none. An adapter stays in its slot until another one needs it: then
the least recently used one leaves, but never one that a request uses. The owner is the engine's thread; a thread of the
slots writes an adapter into a slot that no row uses yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from msgspec import Struct

from qwonnx.runtime.adapters.adapter_folder import AdapterFolder
from qwonnx.runtime.artifact.manifest import AdapterTarget, slot_width
from qwonnx.runtime.cache.pages import PagedArray
from qwonnx.runtime.errors import AdapterError

_ITEM_BYTES = 4
_RANK_MULTIPLE = 16  # the registers of a kernel


class SlotsSnapshot(Struct, frozen=True):
    """Counts since the start, and the adapters that lie in slots now, by name."""

    num_slots: int
    num_bytes: int
    resident: tuple[str, ...]
    num_loads: int
    num_evictions: int


class _Slot(Struct, eq=False):
    """number is its place; used_at counts uses."""

    number: int
    adapter: AdapterFolder | None = None
    pins: int = 0
    is_loading: bool = False
    used_at: int = 0


class AdapterSlots:
    """All slots of an engine.

    Args:
        targets: of the artifact.
        max_slots: adapters that may be in slots at once.
        rank: the largest of an adapter.
        max_bytes: of all slots together.
        on_loaded: called on the slots' thread after an adapter was written, or could not be.

    Raises:
        AdapterError: not even one slot fits max_bytes.
    """

    def __init__(
        self,
        targets: Sequence[AdapterTarget],
        max_slots: int,
        rank: int,
        max_bytes: int,
        on_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        self.rank = -(-rank // _RANK_MULTIPLE) * _RANK_MULTIPLE
        width = slot_width(targets)
        slot_bytes = width * self.rank * _ITEM_BYTES
        count = min(max_slots, max_bytes // slot_bytes)
        if count < 1:
            raise AdapterError(
                f"an adapter of rank {self.rank} takes {slot_bytes} bytes and adapter_bytes is {max_bytes}: give more"
            )
        # Pages take memory when they are written, so unused slots take none.
        self._pages = PagedArray((count + 1, width, self.rank), np.dtype(np.float32))
        self.numbers = self._pages.array
        self._slots = [_Slot(number) for number in range(1, count + 1)]
        self.num_bytes = count * slot_bytes
        self._on_loaded = on_loaded
        self._failures: dict[int, AdapterError] = {}
        self._thread = ThreadPoolExecutor(1, "qwonnx-adapters")
        self._uses = self._loads = self._evictions = 0

    def take(self, adapter: AdapterFolder) -> int | None:
        """Reserve a slot with this adapter until release(), or return None: other requests use all of them.

        The adapter may still be written: see is_ready().
        """
        slot = next((each for each in self._slots if each.adapter and each.adapter.digest == adapter.digest), None)
        if slot is None:
            free = [each for each in self._slots if not each.pins and not each.is_loading]
            slot = min(free, key=lambda each: (each.adapter is not None, each.used_at), default=None)
            if slot is None:
                return None
            self._evictions += slot.adapter is not None
            self._load(slot, adapter)
        self._uses += 1
        slot.pins, slot.used_at = slot.pins + 1, self._uses
        return slot.number

    def is_ready(self, number: int) -> bool:
        """Whether a slot's adapter has been written, or has failed.

        Raises:
            AdapterError: it could not be read. Each request of this slot gets the error, and releases the slot.
        """
        if (error := self._failures.get(number)) is not None:
            raise error
        return not self._slots[number - 1].is_loading

    def release(self, number: int) -> None:
        """End a use of a slot."""
        slot = self._slots[number - 1]
        assert slot.pins > 0, "released more often than taken"
        slot.pins -= 1
        if not slot.pins and number in self._failures:
            del self._failures[number]
            slot.adapter = None

    def num_pins(self) -> int:
        return sum(slot.pins for slot in self._slots)

    def snapshot(self) -> SlotsSnapshot:
        names = tuple(slot.adapter.name for slot in self._slots if slot.adapter is not None)
        return SlotsSnapshot(len(self._slots), self.num_bytes, names, self._loads, self._evictions)

    def close(self) -> None:
        """Wait for the writing thread, and end it."""
        self._thread.shutdown(cancel_futures=True)

    def _load(self, slot: _Slot, adapter: AdapterFolder) -> None:
        slot.adapter, slot.is_loading = adapter, True
        self._failures.pop(slot.number, None)
        self._loads += 1
        self._thread.submit(self._write, slot, adapter)

    def _write(self, slot: _Slot, adapter: AdapterFolder) -> None:
        try:
            adapter.write(self.numbers[slot.number])
        except AdapterError as error:
            self._failures[slot.number] = error
        except Exception as error:  # noqa: BLE001 - a thread has no caller; the requests of this slot get it
            self._failures[slot.number] = AdapterError(f"the adapter {adapter.name} cannot be loaded ({error})")
        slot.is_loading = False
        self._on_loaded()
