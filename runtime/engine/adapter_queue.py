"""Requests that wait until their adapter lies in a slot, in the order of their arrival.

If all slots are in use, those behind the first one that gets none wait too: otherwise requests for adapters that are
there already could keep it waiting for ever. For the engine's thread only.
"""

from __future__ import annotations

from collections.abc import Callable

from qwonnx.runtime.adapters.slots import AdapterSlots
from qwonnx.runtime.engine.generation import Generation
from qwonnx.runtime.errors import AdapterError


class AdapterQueue:
    """The queue of one engine.

    Args:
        slots: of the engine.
    """

    def __init__(self, slots: AdapterSlots) -> None:
        self._slots = slots
        self._waiting: dict[str, Generation] = {}  # by request id

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, generation: Generation) -> None:
        """A request has arrived."""
        self._waiting[generation.request_id] = generation

    def is_waiting(self, generation: Generation) -> bool:
        return generation.request_id in self._waiting

    def advance(self, admit: Callable[[Generation], None]) -> list[tuple[Generation, AdapterError]]:
        """Admit the requests whose adapters are in slots now; return those whose adapters cannot be loaded."""
        failed: list[tuple[Generation, AdapterError]] = []
        for generation in list(self._waiting.values()):
            sequence, adapter = generation.sequence, generation.adapter
            assert adapter is not None, "a request without an adapter does not wait for one"
            if not sequence.adapter_slot:
                slot = self._slots.take(adapter)
                if slot is None:
                    break
                sequence.adapter_slot = slot
            try:
                is_ready = self._slots.is_ready(sequence.adapter_slot)
            except AdapterError as error:
                failed.append((generation, error))
                continue
            if is_ready:
                del self._waiting[generation.request_id]
                admit(generation)
        return failed

    def forget(self, generation: Generation) -> None:
        """A request has ended, waiting or not."""
        self._waiting.pop(generation.request_id, None)
        if generation.sequence.adapter_slot:
            self._slots.release(generation.sequence.adapter_slot)
            generation.sequence.adapter_slot = 0
