"""The adapters of an engine: their names, their slots, and the requests that wait for one.

Most models take none. Then this costs nothing, and the modules that read adapters are not imported.
"""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import numpy as np

from qwonnx.runtime.artifact.manifest import AdapterTarget, slot_width
from qwonnx.runtime.cache.pages import PagedArray
from qwonnx.runtime.engine.generation import Generation
from qwonnx.runtime.errors import AdapterError, InvalidRequestError, SettingsError
from qwonnx.runtime.settings import RuntimeSettings

if TYPE_CHECKING:
    from qwonnx.runtime.adapters.adapter_folder import AdapterFolder
    from qwonnx.runtime.adapters.slots import AdapterSlots, SlotsSnapshot
    from qwonnx.runtime.adapters.tensor_file import Floats
    from qwonnx.runtime.engine.adapter_queue import AdapterQueue

_MAX_NAMES = 1024
_REMEDY = "export with --runtime-adapters, or merge the adapter with `qwonnx export --adapter`"


class Adapters:
    """The adapters of one engine.

    Args:
        targets: of the artifact, none if it takes no adapters.
        settings: those of adapters.
        on_loaded: called on another thread after an adapter was written into a slot.

    Attributes:
        numbers: the slots, an input of the graph; None if the artifact takes no adapters.

    Raises:
        SettingsError: the artifact takes no adapters, two have one name, or they do not fit.
        AdapterError: one cannot be used.
    """

    def __init__(
        self, targets: Sequence[AdapterTarget], settings: RuntimeSettings, on_loaded: Callable[[], None]
    ) -> None:
        self._targets = tuple(targets)
        self._named: dict[str, AdapterFolder] = {}  # replaced as a whole: other threads read it
        self._lock = threading.Lock()
        self._fetched: Path | None = None  # the folder of fetched ones, which goes with this object
        self._slots: AdapterSlots | None = None
        self._queue: AdapterQueue | None = None
        self.numbers: Floats | None = None
        given = [_named(entry) for entry in settings.adapters]
        if given and not targets:
            raise SettingsError(f"the artifact takes no adapters while it runs: {_REMEDY}")
        if not targets:
            return

        from qwonnx.runtime.adapters.adapter_folder import AdapterFolder
        from qwonnx.runtime.adapters.slots import AdapterSlots
        from qwonnx.runtime.engine.adapter_queue import AdapterQueue

        for name, location in given:
            if name in self._named:
                raise SettingsError(f"adapters names {name!r} twice: choose another name")
            folder = self._local(location, settings.adapter_bytes)
            self._named[name] = AdapterFolder(name, folder, self._targets)
        rank = settings.max_adapter_rank or max((each.rank for each in self._named.values()), default=0)
        if rank:
            self._check_ranks(rank)
            self._slots = AdapterSlots(targets, settings.max_adapters, rank, settings.adapter_bytes, on_loaded)
            self._queue = AdapterQueue(self._slots)
            self.numbers = self._slots.numbers
        else:
            self.numbers = PagedArray((1, slot_width(targets), 1), np.dtype(np.float32)).array

    @property
    def num_bytes(self) -> int:
        """What the slots may take."""
        return 0 if self._slots is None else self._slots.num_bytes

    def named(self) -> Mapping[str, AdapterFolder]:
        """The adapters by name; from any thread."""
        return self._named

    def find(self, name: str) -> AdapterFolder:
        """From any thread.

        Raises:
            InvalidRequestError: there is none of this name.
        """
        found = self._named.get(name)
        if found is None:
            raise InvalidRequestError(f"there is no adapter {name!r} here", "model", "model_not_found")
        return found

    def load(self, name: str, folder: Path) -> AdapterFolder:
        """Take up an adapter; one of the same name is replaced. Its requests go on. From any thread.

        Raises:
            AdapterError: it cannot be used.
            SettingsError: the artifact or the settings have no slots, or no more names.
        """
        if self._slots is None:
            reason = "max_adapter_rank is not set, so there are no slots: set it" if self._targets else _REMEDY
            raise SettingsError(f"no adapter can be loaded: {reason}")

        from qwonnx.runtime.adapters.adapter_folder import AdapterFolder

        made = AdapterFolder(_checked_name(name), folder, self._targets)
        if made.rank > self._slots.rank:
            raise AdapterError(
                f"{folder} has rank {made.rank} and slots have {self._slots.rank}: raise max_adapter_rank"
            )
        with self._lock:
            if name not in self._named and len(self._named) >= _MAX_NAMES:
                raise SettingsError(f"there are {_MAX_NAMES} adapters already: unload one")
            self._named = {**self._named, name: made}
        return made

    def unload(self, name: str) -> None:
        """Refuse new requests for an adapter; running ones go on. From any thread.

        Raises:
            InvalidRequestError: there is none of this name.
        """
        with self._lock:
            self.find(name)
            self._named = {other: adapter for other, adapter in self._named.items() if other != name}

    def wait(self, generation: Generation) -> bool:
        """Queue a request if it has an adapter; False if it has none. For the engine's thread, like all below."""
        if generation.adapter is None:
            return False
        assert self._queue is not None, "only loaded adapters have names"
        self._queue.add(generation)
        return True

    @property
    def num_waiting(self) -> int:
        return 0 if self._queue is None else self._queue.num_waiting

    def is_waiting(self, generation: Generation) -> bool:
        return self._queue is not None and self._queue.is_waiting(generation)

    def advance(self, admit: Callable[[Generation], None]) -> list[tuple[Generation, AdapterError]]:
        """See AdapterQueue.advance()."""
        return [] if self._queue is None else self._queue.advance(admit)

    def forget(self, generation: Generation) -> None:
        """A request has ended."""
        if self._queue is not None:
            self._queue.forget(generation)

    def snapshot(self) -> SlotsSnapshot | None:
        """Of the slots; None without any."""
        return None if self._slots is None else self._slots.snapshot()

    def violations(self, num_placed: int) -> list[str]:
        """Errors in the accounting, for tests. num_placed requests have a slot."""
        held = 0 if self._slots is None else self._slots.num_pins()
        return [] if held == num_placed else [f"{num_placed} requests have a slot, and {held} are pinned"]

    def close(self) -> None:
        if self._slots is not None:
            self._slots.close()
        if self._fetched is not None:
            shutil.rmtree(self._fetched, ignore_errors=True)

    def _local(self, location: str, max_bytes: int) -> Path:
        """The folder of an adapter, which is fetched if it lies at a URL."""
        from qwonnx.runtime.adapters.fetching import fetch, is_url

        if not is_url(location):
            return Path(location)
        if self._fetched is None:
            self._fetched = Path(mkdtemp(prefix="qwonnx-adapters-"))
            weakref.finalize(self, shutil.rmtree, self._fetched, ignore_errors=True)
        folder = self._fetched / str(len(self._named))
        folder.mkdir()
        return fetch(location, folder, max_bytes)

    def _check_ranks(self, rank: int) -> None:
        for each in self._named.values():
            if each.rank > rank:
                raise SettingsError(f"max_adapter_rank is {rank} and {each.name} has {each.rank}: give at least that")


def _named(entry: str) -> tuple[str, str]:
    name, mark, location = entry.partition("=")
    if not mark or not location:
        raise SettingsError(f"adapters has {entry[:80]!r}: give NAME=FOLDER")
    return _checked_name(name), location


def _checked_name(name: str) -> str:
    """
    Raises:
        SettingsError: a name that is empty, long, or has characters that do not print.
    """
    if not name or len(name) > 256 or not name.isprintable():
        raise SettingsError(f"{name[:80]!r} is no name of an adapter: give 1 to 256 characters that print")
    return name
