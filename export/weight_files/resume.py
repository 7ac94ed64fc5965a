"""Finds how far an interrupted export came: hashes its files, mark by mark.

Shards are independent, so all processors hash, each one shard at a time. The result is the place where each shard
continues, and the state of its hashes there.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from qwonnx.export.weight_files.external_data import HashedPrefix, ShardPrefix
from qwonnx.export.weight_files.journal import Journal, Mark, Noted
from qwonnx.export.weight_files.layout import ShardLayout
from qwonnx.export.weight_files.progress import ExportProgress

_READ_BYTES = 1 << 20
_REPORT_SECONDS = 0.2


def verify_shards(
    folder: Path,
    layouts: Sequence[ShardLayout],
    journal: Journal,
    num_threads: int,
    on_progress: Callable[[ExportProgress], None],
) -> list[ShardPrefix]:
    """The verified first bytes of every shard; empty if the journal has no mark.

    Raises:
        OSError: a file exists and cannot be read.
    """
    marks = [journal.marks(layout.number) for layout in layouts]
    total = sum(noted.size for mine in marks if mine for noted in mine[-1].files)
    if not total:
        return [ShardPrefix.empty(layout) for layout in layouts]
    done, lock, given_up = 0, threading.Lock(), threading.Event()

    def on_read(num_bytes: int) -> None:
        nonlocal done
        with lock:
            done += num_bytes
        if given_up.is_set():
            raise InterruptedError

    with ThreadPoolExecutor(num_threads, "qwonnx-verify") as pool:
        try:
            jobs = [pool.submit(verified_prefix, folder, *pair, on_read) for pair in zip(layouts, marks, strict=True)]
            waits = True
            while waits:
                waits = bool(wait(jobs, timeout=_REPORT_SECONDS).not_done)
                on_progress(ExportProgress("verify", done, total))
            return [job.result() for job in jobs]
        finally:
            given_up.set()  # leaving the block waits for running jobs
            pool.shutdown(wait=False, cancel_futures=True)


def verified_prefix(
    folder: Path, layout: ShardLayout, marks: Sequence[Mark], on_read: Callable[[int], None]
) -> ShardPrefix:
    """The longest verified first bytes of a shard's files: those of its last true mark.

    Args:
        folder: with the files, which may be missing or shorter than a mark says.
        layout: of the shard.
        marks: of the shard, in the order of its bytes.
        on_read: called with the number of bytes after every read.

    Raises:
        OSError: a file exists and cannot be read.
    """
    files = [_Prefix(folder / name, on_read) for name in layout.files]
    verified = ShardPrefix.empty(layout)
    for mark in marks:
        if len(mark.files) != len(files):
            break
        if not all(file.grow_to(noted) for file, noted in zip(files, mark.files, strict=True)):
            break
        verified = ShardPrefix(tuple(file.hashed for file in files))
    return verified


class _Prefix:
    """A file that is hashed from its beginning, mark by mark."""

    def __init__(self, path: Path, on_read: Callable[[int], None]) -> None:
        self._path = path
        self._on_read = on_read
        self._size = 0
        self._digest = hashlib.sha256()

    @property
    def hashed(self) -> HashedPrefix:
        return HashedPrefix(self._size, self._digest.copy())

    def grow_to(self, noted: Noted) -> bool:
        """Hash up to a mark, and return whether it is true."""
        if noted.size > self._size:
            if not self._path.is_file():
                return False
            with self._path.open("rb", buffering=0) as file:
                file.seek(self._size)
                while self._size < noted.size:
                    content = file.read(min(_READ_BYTES, noted.size - self._size))
                    if not content:
                        return False
                    self._digest.update(content)
                    self._size += len(content)
                    self._on_read(len(content))
        return self._size == noted.size and self._digest.hexdigest() == noted.sha256
