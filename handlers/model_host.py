"""The host of an application's engine: it loads the engine in the background, while the server already answers.

A separate thread loads and warms up the engine. Until then a bounded number of requests may wait for it; others are
refused with 503 or 429.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.models.store_names import store_names

if TYPE_CHECKING:
    from qwonnx.runtime.engine.engine import Engine
    from qwonnx.runtime.engine.metrics import MetricsSnapshot

logger = logging.getLogger(__name__)

_MOST_NAMED = 8  # adapters, in an error


class HostStatus(Enum):
    """The state of the engine."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    CLOSING = "closing"


class ModelHost:
    """Owns one engine.

    Args:
        load: opens the engine; called once, on the host's thread.
        model_names: the names that requests may give, the first of which is shown; none: the engine's checkpoint's.
        any_model_name: requests may give any name.
        on_ready: called on the host's thread once the model answers.
        on_failure: called on the host's thread with the error if loading fails; by default it is logged.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        *,
        model_names: Sequence[str] = (),
        any_model_name: bool = False,
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._load = load
        self._model_names = tuple(model_names)
        self._any_model_name = any_model_name
        self._on_ready = on_ready
        self._on_failure = on_failure or _log_failure
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._answered = False  # the warm-up token
        self._held: list[asyncio.Future[None]] = []  # requests that wait while the engine loads; for the lock
        self._names_in_store: tuple[str, ...] = ()  # after loading
        self.fingerprint = ""  # of the artifact, after loading: equal ones mean equal models
        self.error: Exception | None = None

    @property
    def status(self) -> HostStatus:
        if self._closing:
            return HostStatus.CLOSING
        if self.error is not None:
            return HostStatus.FAILED
        if not self._answered:
            return HostStatus.LOADING
        # An engine that is no longer ready has stopped because of a fault.
        return HostStatus.READY if self._engine is not None and self._engine.is_ready else HostStatus.FAILED

    def start(self) -> None:
        """Start to load in a thread; does nothing the second time."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._prepare, name="qwonnx-load", daemon=True)
                self._thread.start()

    @property
    def has_loaded(self) -> bool:
        """Whether loading has ended, well or not."""
        return self._thread is not None and not self._thread.is_alive()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until loading has ended, or so many seconds.

        Raises:
            the errors of opening and warming up the engine.
        """
        self.start()
        assert self._thread is not None
        self._thread.join(seconds)
        if self.error is not None:
            raise self.error

    def begin_close(self) -> None:
        """Refuse new requests; running ones continue."""
        self._closing = True
        self._release()

    def close(self) -> None:
        """End running requests and close the engine. Returns when that is done; idempotent.

        If the engine is still loading, the loading thread closes it.
        """
        with self._lock:
            self._closing = True
            engine = self._engine
        self._release()
        if engine is not None:
            engine.close()

    @property
    def num_held(self) -> int:
        """Requests that wait for the engine."""
        return len(self._held)

    async def engine_when_ready(self, max_held: int) -> Engine:
        """The engine, as soon as loading has ended. A caller that is cancelled gives its place back.

        Args:
            max_held: requests that may wait at a time; 0 refuses instead of waiting.

        Raises:
            ServiceError: 429, as many wait already; 503, the engine is not ready: it loads and nothing may wait, it has
                failed, or the server stops.
        """
        with self._lock:
            # An outer application may have forgotten to start the host: then there is nothing to wait for.
            if self.status is not HostStatus.LOADING or self._thread is None or max_held == 0:
                return self.ready_engine()
            if len(self._held) >= max_held:
                raise errors.too_many_held(max_held)
            place = asyncio.get_running_loop().create_future()
            self._held.append(place)
        try:
            await place
        finally:
            with self._lock:
                self._held.remove(place)
        return self.ready_engine()

    def _release(self) -> None:
        """Let the held requests go on: loading has ended, or will not matter."""
        with self._lock:
            for place in self._held:
                with suppress(RuntimeError):  # its event loop was closed, and the request with it
                    place.get_loop().call_soon_threadsafe(_settle, place)

    @property
    def loaded_engine(self) -> Engine | None:
        """The engine, ready or not; None before it is opened."""
        return self._engine

    def ready_engine(self) -> Engine:
        """The engine.

        Raises:
            ServiceError: 503, it is not ready.
        """
        status = self.status
        if status is HostStatus.READY and self._engine is not None:
            return self._engine
        if status is HostStatus.CLOSING:
            raise errors.closing()
        reason = "is loading" if status is HostStatus.LOADING else "failed: see the server's log"
        raise errors.not_ready(reason)

    def metrics(self) -> MetricsSnapshot | None:
        """The engine's totals; None before there is an engine."""
        return None if self._engine is None else self._engine.metrics()

    def model_names(self) -> tuple[str, ...]:
        """The model's names in requests, at least one.

        Raises:
            ServiceError: 503, the engine is not ready.
        """
        return self._model_names or (self.ready_engine().artifact.manifest.source.checkpoint,)

    def accepted_names(self) -> tuple[str, ...]:
        """All names that requests may give: those that are served, and those of a pulled model in its store.

        Raises:
            ServiceError: 503, the engine is not ready.
        """
        return (*self.served_names(), *self._names_in_store)

    def adapter_names(self) -> tuple[str, ...]:
        """The names of the model's adapters, which requests may give instead of the model's; none while it loads."""
        if self._engine is None:
            return ()
        own = self.model_names()
        return tuple(name for name in self._engine.adapters() if name not in own)

    def served_names(self) -> tuple[str, ...]:
        """All names that a list of models has: the model's, then its adapters'.

        Raises:
            ServiceError: 503, the engine is not ready.
        """
        return (*self.model_names(), *self.adapter_names())

    def adapter_of(self, name: str) -> str:
        """The adapter that a name of a model asks for; empty: none."""
        if self._engine is None or name in self.model_names():
            return ""
        return name if self._engine.has_adapter(name) else ""

    def check_model(self, name: str) -> str:
        """Check a name of the model, or of an adapter, and return it: answers have the name that was asked for.

        Raises:
            ServiceError: 404, it is another name.
        """
        own = self.model_names()
        if name not in (*own, *self._names_in_store) and not self._any_model_name and not self.adapter_of(name):
            named = (*own, *self.adapter_names()[:_MOST_NAMED])
            message = f"there is no model {name!r} here: use {' or '.join(map(repr, named))}"
            raise ServiceError(ErrorKind.NOT_FOUND, 404, message, parameter="model", code="model_not_found")
        return name

    def _prepare(self) -> None:
        try:
            engine = self._load()
            self.fingerprint = f"fp_{engine.artifact.id[:12]}"
            if not self._model_names:
                self._names_in_store = store_names(engine.artifact.folder)
            with self._lock:
                self._engine = engine
                closing = self._closing
            if closing:
                engine.close()
                return
            engine.start()
            engine.warm_up()
            self._answered = True
            engine.startup.report()
            logger.info("ready, after seconds of: %s; kernels: %s", engine.startup, engine.kernels.name)
        except Exception as error:  # noqa: BLE001 - a thread has no caller; on_failure and wait() report the error
            if self._closing:
                return  # the warm-up was cut short
            self.error = error
            self._release()
            self._on_failure(error)
        else:
            self._release()
            self._on_ready()


def _settle(place: asyncio.Future[None]) -> None:
    if not place.done():
        place.set_result(None)


def _log_failure(error: Exception) -> None:
    logger.error("the model could not be loaded: %s", error, exc_info=error)
