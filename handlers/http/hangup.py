"""SIGHUP reads the file of keys again, as for other servers; without such a file the signal is left as it is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from qwonnx.handlers.http.api_keys import KeyRing


@contextmanager
def reloading_on_hangup(ring: KeyRing) -> Iterator[None]:
    """Reload the ring on each SIGHUP, while the event loop runs. Does nothing where a loop cannot have signals:

    on another thread than the main one, and on Windows.
    """
    loop = asyncio.get_running_loop()
    number = getattr(signal, "SIGHUP", None)
    if number is None or not ring.can_change:
        yield
        return
    before = signal.getsignal(number)  # as nohup sets it
    try:
        loop.add_signal_handler(number, loop.run_in_executor, None, ring.reload)
    except (NotImplementedError, RuntimeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(number)
        signal.signal(number, before)
