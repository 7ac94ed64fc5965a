"""The files of a batch's answers and errors. Each row is written whole, at once, at the end of its file.

A batch that was killed leaves whole rows and at most one part of a row, which resuming cuts off. Answered lines are not
asked again; lines with errors are.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from qwonnx.handlers.batch.errors import BatchError
from qwonnx.handlers.batch.work import Row

PIPE = Path("-")
_CHUNK_BYTES = 1 << 20


class Results:
    """Where rows go.

    Args:
        out: the file of answers; "-" is standard output.
        errors: the file of errors; None is standard error.
        resume: keep the answers that are there.
        force: replace what is there.

    Raises:
        BatchError: a file exists and neither resume nor force is given; it cannot be written or read; another batch
            writes it; or it is no file of answers.
    """

    def __init__(self, out: Path, errors: Path | None, *, resume: bool = False, force: bool = False) -> None:
        self.answered: set[str] = set()  # custom ids
        self._errors_path = errors
        if out == PIPE:
            if resume:
                raise BatchError("standard output cannot be resumed: give a file for the answers")
            self._out = os.dup(sys.stdout.fileno())
        else:
            self._out = _open(out, resume=resume, force=force)
            try:
                _lock(self._out, out)
                if resume:
                    self.answered = set(_kept_ids(self._out, out))
                elif stat.S_ISREG(os.fstat(self._out).st_mode):
                    os.ftruncate(self._out, 0)
            except BaseException:
                os.close(self._out)
                raise
        self._errors: int | None = None

    def answer(self, row: Row) -> None:
        """
        Raises:
            BatchError: it cannot be written.
        """
        _write(self._out, row)

    def error(self, row: Row) -> None:
        """
        Raises:
            BatchError: it cannot be written.
        """
        if self._errors is None:
            self._errors = self._opened_errors()
        _write(self._errors, row)

    def close(self) -> None:
        for number in (self._out, self._errors):
            if number is not None:
                with contextlib.suppress(OSError):  # a pipe cannot be synchronised
                    os.fsync(number)
                os.close(number)
        self._errors = None

    def forget_errors(self) -> None:
        """Remove the file of an earlier run: its lines are asked again."""
        if self._errors_path is not None:
            self._errors_path.unlink(missing_ok=True)

    def _opened_errors(self) -> int:
        if self._errors_path is None:
            return os.dup(sys.stderr.fileno())
        return _open(self._errors_path, resume=False, force=True, truncate=True)

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _open(path: Path, *, resume: bool, force: bool, truncate: bool = False) -> int:
    # Windows has no O_CLOEXEC, and would translate line ends.
    plain = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | plain
    if not (resume or force):
        flags |= os.O_EXCL
    if truncate:
        flags |= os.O_TRUNC
    try:
        number = os.open(path, flags, 0o666)
    except FileExistsError as error:
        remedy = "give --resume to go on, --force to replace it, or another file"
        raise BatchError(f"{path} exists: {remedy}") from error
    except OSError as error:
        raise BatchError(f"cannot write {path} ({error.strerror}): give another file") from error
    if not stat.S_ISREG(os.fstat(number).st_mode) and resume:
        os.close(number)
        raise BatchError(f"{path} is not a regular file, so it cannot be resumed: give another file")
    return number


def _lock(number: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BatchError(f"another batch writes {path}: wait for it, or give another file") from error


def _kept_ids(number: int, path: Path) -> Iterator[str]:
    """The ids of whole rows; the rest of the file is cut off."""
    with open(os.dup(number), "rb") as file:
        file.seek(0)
        whole = 0
        for count, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                custom_id = row["custom_id"]
            except (ValueError, KeyError, TypeError) as error:
                message = f"line {count} of {path} is no answer of a batch: give another file, or --force to replace it"
                raise BatchError(message) from error
            whole += len(line)
            yield str(custom_id)
    os.ftruncate(number, whole)


def _write(number: int, row: Row) -> None:
    data = memoryview(_json(row) + b"\n")
    try:
        while data:
            data = data[os.write(number, data) :]
    except BrokenPipeError as error:
        raise BatchError("the reader of the answers has gone: start again with a file, or with --resume") from error
    except OSError as error:
        raise BatchError(f"an answer cannot be written ({error.strerror}): make room, then --resume") from error


def _json(row: Row) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, which JSON can spell and UTF-8 cannot
        return json.dumps(row).encode()
