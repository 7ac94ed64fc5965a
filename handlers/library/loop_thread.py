"""An event loop in a thread of its own, for callers without one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")
THREADS = "qwonnx-"
"""How the names of our threads begin."""
_CANCEL_SECONDS = 10.0  # for a coroutine that is cancelled


class LoopThread:
    """Runs coroutines for other threads. The thread ends with close(), or with the process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"{THREADS}answers", daemon=True)
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine and wait for it. If the wait is interrupted, as by Ctrl-C, the coroutine is cancelled first.

        Raises:
            RuntimeError: the thread has ended.
            the errors of the coroutine.
        """
        ended = threading.Event()

        async def whole() -> _Result:
            try:
                return await work
            finally:
                ended.set()

        if self._loop.is_closed():
            work.close()
            raise RuntimeError("the thread has ended")
        running = asyncio.run_coroutine_threadsafe(whole(), self._loop)
        try:
            return running.result()
        except BaseException:
            running.cancel()
            ended.wait(_CANCEL_SECONDS)
            raise

    def close(self) -> None:
        """Cancel what runs, and end the thread; idempotent."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
