"""What the engine's thread has for one event loop.

The loop is woken once, however many outputs come before it looks: a step has one for each row, and each wake would hand
Python's lock to the loop's thread and back.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary, ref

from qwonnx.runtime.engine.request import RequestOutput

Receive = Callable[[RequestOutput], None]


class LoopInbox:
    """Of one loop; of() makes it.

    Args:
        loop: on whose thread outputs are received.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # the table of inboxes must not keep it
        self._waiting: deque[tuple[Receive, RequestOutput]] = deque()
        self._is_woken = False

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop) -> LoopInbox:
        """The inbox of a loop. From any thread."""
        with _LOCK:
            found = _INBOXES.get(loop)
            if found is None:
                found = _INBOXES[loop] = LoopInbox(loop)
            return found

    def put(self, receive: Receive, output: RequestOutput) -> None:
        """Let the loop's thread receive an output. From the engine's thread.

        Raises:
            RuntimeError: the loop is closed.
        """
        self._waiting.append((receive, output))
        if not self._is_woken:
            self._is_woken = True
            try:
                if (loop := self._loop()) is None:
                    raise RuntimeError("the event loop has gone")
                loop.call_soon_threadsafe(self._deliver)
            except BaseException:
                self._is_woken = False
                raise

    def _deliver(self) -> None:
        self._is_woken = False  # first: what is put from here on wakes again
        while self._waiting:
            receive, output = self._waiting.popleft()
            receive(output)


_LOCK = threading.Lock()
_INBOXES: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopInbox] = WeakKeyDictionary()
