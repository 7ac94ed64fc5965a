"""Messages from other threads to the owner of an engine: requests, aborts, calls, and close.

One lock guards everything here. The owner is the thread that start() made, or, without one, the thread that calls
step().
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from msgspec import Struct

from qwonnx.runtime.engine.generation import Generation
from qwonnx.runtime.errors import EngineClosedError, InvalidRequestError, QueueFullError

_Result = TypeVar("_Result")

_CLOSED = "the engine is closed: open the artifact again"


class Mail(Struct, frozen=True):
    """Messages since the last take(): calls to make, new requests, ids of requests to abort, those to keep first."""

    calls: list[Callable[[], None]]
    arrived: list[Generation]
    aborted: set[str]
    kept: set[str]


class Mailbox:
    """The mailbox of one engine.

    Args:
        max_live: limit for accepted requests that have not ended.
        max_queued: limit for waiting ones among them; the message of a refusal names it.
    """

    def __init__(self, max_live: int, max_queued: int) -> None:
        self._max_live, self._max_queued = max_live, max_queued
        self._condition = threading.Condition()
        self._calls: list[Callable[[], None]] = []
        self._unanswered: set[Future[Any]] = set()
        self._arrived: list[Generation] = []
        self._aborted: set[str] = set()
        self._kept: set[str] = set()
        self._live: dict[str, Generation] = {}  # by request id, accepted and not ended
        self._owner: threading.Thread | None = None
        self.is_closed = False

    @property
    def num_live(self) -> int:
        return len(self._live)

    @property
    def num_arrived(self) -> int:
        """Requests that the owner has not taken yet."""
        return len(self._arrived)

    def start(self, serve: Callable[[], None]) -> None:
        """Start the owner's thread; does nothing if it exists.

        Raises:
            EngineClosedError: it was closed.
        """
        with self._condition:
            self._check_open()
            if self._owner is None:
                self._owner = threading.Thread(target=serve, name="qwonnx-engine", daemon=True)
                self._owner.start()

    def close(self) -> threading.Thread | None:
        """Refuse new messages, wake the owner, and return its thread (None if it has not started)."""
        with self._condition:
            self.is_closed = True
            self._condition.notify_all()
            return self._owner

    def accept(self, generation: Generation) -> None:
        """Leave a request for the owner.

        Raises:
            InvalidRequestError: a live request has the same id.
            QueueFullError: max_live requests are live.
            EngineClosedError: the engine was closed.
        """
        with self._condition:
            self._check_open()
            if generation.request_id in self._live:
                raise InvalidRequestError(
                    f"request {generation.request_id} is running: choose another id", "request_id"
                )
            if len(self._live) >= self._max_live:
                raise QueueFullError(f"{self._max_queued} requests wait already: try again later")
            self._live[generation.request_id] = generation
            self._arrived.append(generation)
            self._condition.notify_all()

    def abort(self, request_id: str, *, keep: bool = False) -> None:
        """Ask the owner to abort a request, and to keep its state first; ids that are not live are ignored."""
        with self._condition:
            if request_id in self._live:
                self._aborted.add(request_id)
                if keep:
                    self._kept.add(request_id)
                self._condition.notify_all()

    def ask(self, function: Callable[[], _Result]) -> _Result:
        """Have the owner call a function between two steps, and return what it returns.

        Raises:
            EngineClosedError: the engine is closed, or closes before it answers.
        """
        with self._condition:
            self._check_open()
            if self._owner in (None, threading.current_thread()):  # the caller is the owner
                return function()
            answer: Future[_Result] = Future()
            self._calls.append(lambda: answer.set_result(function()))
            self._unanswered.add(answer)
            answer.add_done_callback(self._unanswered.discard)
            self._condition.notify_all()
        return answer.result()

    def post(self, function: Callable[[], None]) -> None:
        """Have the owner call a function between two steps, without waiting for it; nothing if the engine is closed."""
        with self._condition:
            if not self.is_closed:
                self._calls.append(function)
                self._condition.notify_all()

    def wait(self, is_busy: Callable[[], bool]) -> bool:
        """For the owner: sleep until there is something to do; False once the engine is closed."""
        with self._condition:
            while not (self.is_closed or self._arrived or self._aborted or self._calls or is_busy()):
                self._condition.wait()
            return not self.is_closed

    def take(self) -> Mail:
        """For the owner: the messages since the last call."""
        with self._condition:
            mail = Mail(self._calls, self._arrived, self._aborted, self._kept)
            self._calls, self._arrived, self._aborted, self._kept = [], [], set(), set()
        return mail

    def forget(self, request_id: str) -> None:
        """For the owner: a request has ended."""
        with self._condition:
            self._live.pop(request_id, None)
            self._aborted.discard(request_id)
            self._kept.discard(request_id)

    def drain(self) -> list[Generation]:
        """For the owner, at the end: fail all unanswered calls, and return all live requests."""
        with self._condition:
            self.is_closed = True
            live = list(self._live.values())
            self._arrived.clear()
            unanswered = list(self._unanswered)
        for answer in unanswered:
            answer.set_exception(EngineClosedError("the engine was closed: open the artifact again"))
        return live

    def _check_open(self) -> None:
        if self.is_closed:
            raise EngineClosedError(_CLOSED)
