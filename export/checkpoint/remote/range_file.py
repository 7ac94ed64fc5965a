"""Reads tensors from a file elsewhere in ranges: long ones directly, small ones together.

Every request takes a while, so neighbouring small tensors come in one range, which is kept for those that are read
next. A range never reaches into a large tensor, so no byte of one is read twice. What is kept, and what is on its way,
is bounded by ReadingMemory, which all files of a checkpoint share.
"""

from __future__ import annotations

import bisect
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from qwonnx.export.checkpoint.remote.store import Store, StoredObject
from qwonnx.export.checkpoint.stored_file import ByteRange, FileState, ReadInto

# Threads of an export that reads ranges: most of them wait for an answer, and so the next slices are on their way.
READING_THREADS = 4 * (os.cpu_count() or 1)

# The longest range: at 100 MB/s, as long as a request takes anyway. A small file has shorter ones, so that one that
# breaks is not a large part of the file.
RANGE_BYTES = 4 << 20
_SHORT_RANGE_BYTES = 64 << 10
_RANGES_OF_FILE = 64
# A read of this part of a range is worth a request of its own.
_LONG_READ = 8

# Of the memory of an export, and limits of it: what reading may take besides the tensors.
_SHARE = 8
_LEAST_BYTES, _MOST_BYTES = 4 * RANGE_BYTES, 40 * RANGE_BYTES

Key = tuple[str, int]  # a file's name, and where a range begins


class ReadingMemory:
    """Ranges that are kept, the longest unused one given up first; and how many may be on their way."""

    def __init__(self, num_bytes: int = _LEAST_BYTES) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Future[bytes]] = OrderedDict()
        self._kept_bytes = 0
        self.limit(num_bytes)

    def limit(self, num_bytes: int) -> None:
        """Change the limit, before reads begin. Half of it is for ranges that are kept."""
        self._most_kept = num_bytes // 2
        self._slots = threading.Semaphore(max(1, (num_bytes - self._most_kept) // RANGE_BYTES))

    @property
    def kept_bytes(self) -> int:
        """Bytes of ranges that are kept."""
        return self._kept_bytes

    @staticmethod
    def share_of(memory_bytes: int) -> int:
        """What reading takes of an export's memory."""
        return min(max(memory_bytes // _SHARE, _LEAST_BYTES), _MOST_BYTES)

    def fetched(self, fetch: Callable[[], bytes]) -> bytes:
        """The result of a request, when there is room for it."""
        with self._slots:
            return fetch()

    def kept(self, key: Key, fetch: Callable[[], bytes]) -> bytes:
        """A range that is kept, or is fetched now; threads that ask for the same one wait for the first."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            else:
                mine: Future[bytes] = Future()
                self._kept[key] = mine
        if found is not None:
            return found.result()
        try:
            content = self.fetched(fetch)
        except BaseException as error:
            with self._lock:
                del self._kept[key]
            mine.set_exception(error)
            raise
        mine.set_result(content)
        with self._lock:
            self._kept_bytes += len(content)
            for old in [old for old, future in self._kept.items() if old != key and future.done()]:
                if self._kept_bytes <= self._most_kept:
                    break
                self._kept_bytes -= len(self._kept.pop(old).result())
        return content


class RangeFile:
    """A file in a store, as a StoredFile.

    Args:
        store: that has it.
        found: the file.
        memory: for its ranges.
    """

    def __init__(self, store: Store, found: StoredObject, memory: ReadingMemory) -> None:
        self._store = store
        self._found = found
        self._memory = memory
        self._starts: list[int] = []  # of the ranges that small reads fetch, and the end of the last
        self._header = b""
        self._range_bytes = min(max(found.size // _RANGES_OF_FILE, _SHORT_RANGE_BYTES), RANGE_BYTES)
        self._long_bytes = self._range_bytes // _LONG_READ

    def __str__(self) -> str:
        return f"{self._store.shown}/{self._found.name}"

    @property
    def name(self) -> str:
        return self._found.name

    @property
    def found(self) -> StoredObject:
        """The file as it was listed."""
        return self._found

    def state(self) -> FileState:
        return FileState(self._found.size, self._found.version, self._found.sha256)

    def fetch_header(self, num_bytes: Callable[[bytes], int], first: int = 8) -> None:
        """Read the header's bytes, so that `stream` need not: the first ones say how many follow."""
        prefix = self._read(0, min(first, self._found.size))
        more = max(0, min(num_bytes(prefix), self._found.size - len(prefix)))
        self._header = prefix + (self._read(len(prefix), len(prefix) + more) if more else b"")

    def stream(self) -> BinaryIO:
        return cast(BinaryIO, _Stream(self._read_header, self._found.size))

    def lay_out(self, tensors: Iterable[ByteRange]) -> None:
        starts: list[int] = []
        end, begin = 0, 0
        joins = False  # whether the last range may grow
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:  # bytes that it shares with another one come once
                tensor = ByteRange(end, max(0, tensor.end - end))
            is_small = tensor.num_bytes < self._long_bytes
            if not (is_small and joins and tensor.end - begin <= self._range_bytes):
                starts += [tensor.offset, *range(tensor.offset + self._range_bytes, tensor.end, self._range_bytes)]
                begin = tensor.offset
            joins, end = is_small, max(end, tensor.end)
        self._starts = [*starts, end]
        self._header = b""  # it was read

    @contextmanager
    def opened(self, whole: ByteRange | None = None) -> Iterator[ReadInto]:
        yield self._read_into if whole is None else self._read_pieces

    def _read_into(self, target: memoryview, offset: int) -> None:
        if target.nbytes < self._long_bytes:
            self._read_pieces(target, offset)
            return
        for start in range(0, target.nbytes, self._range_bytes):
            part = target[start : start + self._range_bytes]
            part[:] = self._memory.fetched(lambda at=offset + start, num=part.nbytes: self._read(at, at + num))  # type: ignore[misc]

    def _read_pieces(self, target: memoryview, offset: int) -> None:
        """Fill a buffer from the ranges that are kept."""
        while target.nbytes:
            place = bisect.bisect_right(self._starts, offset) - 1
            if 0 <= place < len(self._starts) - 1:
                start, end = self._starts[place], self._starts[place + 1]
            else:  # not laid out
                start, end = offset, offset + target.nbytes
            content = self._memory.kept((self.name, start), lambda at=start, to=end: self._read(at, to))  # type: ignore[misc]
            part = memoryview(content)[offset - start : offset - start + target.nbytes]
            target[: part.nbytes] = part
            target, offset = target[part.nbytes :], offset + part.nbytes

    def _read_header(self, start: int, end: int) -> bytes:
        return self._header[start:end] if end <= len(self._header) else self._read(start, end)

    def _read(self, start: int, end: int) -> bytes:
        return self._store.read(self._found, start, end) if end > start else b""


class _Stream(io.RawIOBase):
    """An opened file, for readers of headers; every read is a request."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read_range = read
        self._size = size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        end = min(self._place + view.nbytes, self._size)
        content = self._read_range(self._place, end) if end > self._place else b""
        view[: len(content)] = content
        self._place += len(content)
        return len(content)
