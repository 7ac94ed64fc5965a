"""What the engine's thread has for one event loop.

The loop is woken once, however many outputs come before it looks: a step has one for each row, and each wake would hand
Python's lock to the loop's thread and back.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary, ref

from qwonnx.runtime.engine.request import RequestOutput

Receive = Callable[[Sequence[RequestOutput]], None]


class LoopInbox:
    """Of one loop; of() makes it.

    Args:
        loop: on whose thread outputs are received.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # the table of inboxes must not keep it
        self._waiting: deque[tuple[Receive, Sequence[RequestOutput]]] = deque()
        self._is_woken = False

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> LoopInbox:
        """The inbox of a loop. From any thread."""
        with _LOCK:
            found = _INBOXES.get(loop)
            if found is None:
                found = _INBOXES[loop] = LoopInbox(loop)
            return found

    def put(self, receive: Receive, outputs: Sequence[RequestOutput]) -> None:
        """Let the loop's thread receive outputs. From the engine's thread.

        Raises:
            RuntimeError: the loop is closed.
        """
        self._waiting.append((receive, outputs))
        if not self._is_woken:
            self._is_woken = True
            try:
                if (loop := self._loop()) is None:
                    raise RuntimeError("the event loop has gone")
                loop.call_soon_threadsafe(self.deliver)
            except BaseException:
                self._is_woken = False
                raise

    def deliver(self) -> None:
        """Receive what waits. On the loop's thread."""
        self._is_woken = False  # first: what is put from here on wakes again
        while self._waiting:
            receive, outputs = self._waiting.popleft()
            receive(outputs)


_LOCK = threading.Lock()
_INBOXES: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopInbox] = WeakKeyDictionary()
