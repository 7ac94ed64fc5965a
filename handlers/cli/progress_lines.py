"""Progress where there is no terminal: a line on stderr every half minute, whatever the work reports meanwhile."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

LINE_SECONDS = 30.0


@contextmanager
def lines_every(seconds: float, line: Callable[[], str]) -> Iterator[None]:
    """Print a line now and then, while the block runs. `line` is called in another thread."""
    ended = threading.Event()

    def write() -> None:
        # A thread, because some steps report nothing for minutes.
        while not ended.wait(seconds):
            print(f"qwonnx: {line()}", file=sys.stderr, flush=True)

    writer = threading.Thread(target=write, name="qwonnx-progress", daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


@contextmanager
def step_progress(step: str, console: Console, seconds: float = LINE_SECONDS) -> Iterator[Callable[[str], None]]:
    """Show the current step; call what it gives with the next one.

    A terminal shows it all the time. Elsewhere a line has it, with the time since the start.
    """
    if console.is_terminal:
        with console.status(step) as status:
            yield status.update
        return
    current, started = [step], time.monotonic()

    def update(text: str) -> None:
        current[0] = text

    with lines_every(seconds, lambda: f"{current[0]}, {time.monotonic() - started:.0f} s since the start"):
        yield update
