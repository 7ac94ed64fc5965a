"""A line on stderr that shows how far something is. Where there is no terminal, nothing, or a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

_WIDTH = 24
_SECONDS = 0.1  # between two pictures
_LINE_SECONDS = 30.0  # between two lines


class ProgressBar:
    """As a context manager it removes its line at the end.

    Args:
        wanted: show it; None: if stderr is a terminal.
        stream: where to; None: stderr.
        is_long: without a terminal, and unless wanted is False, write a line at the beginning and every 30 seconds.
    """

    def __init__(self, wanted: bool | None = None, stream: TextIO | None = None, *, is_long: bool = False) -> None:
        self._stream = stream or sys.stderr
        self.is_shown = self._stream.isatty() if wanted is None else wanted
        self._has_lines = is_long and wanted is None and not self.is_shown
        self._shown_at = -_LINE_SECONDS
        self._length = 0

    def show(self, text: str, done: int, total: int) -> None:
        """
        Args:
            text: what is done, and its numbers.
            done, total: of the bar; a total of 0: no bar.
        """
        now = time.monotonic()
        if self._has_lines and now - self._shown_at >= _LINE_SECONDS:
            self._shown_at = now
            print(text, file=self._stream, flush=True)
        if not self.is_shown or (now - self._shown_at < _SECONDS and done < total):
            return
        self._shown_at = now
        filled = _WIDTH * min(done, total) // total if total else 0
        bar = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] " if total else ""
        self._write(f"{bar}{text}")

    def _write(self, line: str) -> None:
        self._stream.write(f"\r{line.ljust(self._length)}")
        self._stream.flush()
        self._length = len(line)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._length:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()
