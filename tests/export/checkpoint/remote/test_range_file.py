"""Ranges of a file: every byte once, small tensors together, and a bound on what is kept."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwonnx.export.checkpoint.remote import range_file
from qwonnx.export.checkpoint.remote.range_file import RANGE_BYTES, RangeFile, ReadingMemory
from qwonnx.export.checkpoint.remote.store import StoredObject
from qwonnx.export.checkpoint.stored_file import ByteRange

pytestmark = pytest.mark.fast

SHORT = range_file._SHORT_RANGE_BYTES


class CountingStore:
    """A file in memory, and the ranges that were read."""

    shown = "test://folder"

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.ranges: list[tuple[int, int]] = []

    def objects(self) -> Mapping[str, StoredObject]:
        return {}

    def unlisted(self, names: Sequence[str]) -> Mapping[str, StoredObject]:
        return {}

    def read(self, found: StoredObject, start: int, end: int) -> bytes:
        assert 0 <= start < end <= len(self.content)
        self.ranges.append((start, end))
        return self.content[start:end]

    @property
    def num_bytes(self) -> int:
        return sum(end - start for start, end in self.ranges)


def opened(sizes: list[int], memory: ReadingMemory | None = None) -> tuple[CountingStore, RangeFile, list[ByteRange]]:
    """A file with tensors of these sizes after a header of 100 bytes."""
    tensors, place = [], 100
    for size in sizes:
        tensors.append(ByteRange(place, size))
        place += size
    store = CountingStore(random.Random(0).randbytes(place))
    file = RangeFile(store, StoredObject("a", place, "1"), memory or ReadingMemory())
    file.lay_out(tensors)
    return store, file, tensors


def read(file: RangeFile, tensor: ByteRange, start: int = 0, count: int | None = None) -> bytes:
    target = bytearray(tensor.num_bytes if count is None else count)
    with file.opened() as read_into:
        read_into(memoryview(target), tensor.offset + start)
    return bytes(target)


def test_bytes_that_tensors_share_come_once() -> None:
    store, file, _ = opened([3 * SHORT])
    tensors = [ByteRange(100, 3 * SHORT), ByteRange(100, 3 * SHORT), ByteRange(200, 50), ByteRange(2 * SHORT, 900)]
    file.lay_out(tensors)
    for tensor in tensors:
        for start in range(0, tensor.num_bytes, 1000):
            part = min(1000, tensor.num_bytes - start)
            place = tensor.offset + start
            assert read(file, tensor, start, part) == store.content[place : place + part]
    assert store.num_bytes == 3 * SHORT


def test_small_tensors_come_together_and_large_ones_alone() -> None:
    store, file, tensors = opened([1000, 0, 2000, SHORT + 5, 3000])
    for tensor in reversed(tensors):
        assert read(file, tensor) == store.content[tensor.offset : tensor.end]
    assert store.num_bytes == len(store.content) - 100
    assert sorted(store.ranges)[0] == (100, 3100)
    assert len(store.ranges) == 4


def test_small_reads_of_a_large_tensor_read_its_bytes_once() -> None:
    store, file, (tensor,) = opened([3 * SHORT + 7], ReadingMemory(16 * RANGE_BYTES))
    with file.opened(tensor) as read_into:
        target = bytearray(1000)
        for start in (*range(0, tensor.num_bytes - 1000, 991), tensor.num_bytes - 1000):
            read_into(memoryview(target), tensor.offset + start)
            assert target == store.content[tensor.offset + start :][:1000]
    assert store.num_bytes == tensor.num_bytes


def test_threads_that_want_the_same_range_read_it_once() -> None:
    store, file, tensors = opened([25] * 2000)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda tensor: read(file, tensor), tensors))
    assert b"".join(contents) == store.content[100:]
    assert len(store.ranges) == 1


def test_what_is_kept_is_bounded() -> None:
    memory = ReadingMemory(4 * RANGE_BYTES)
    store, file, tensors = opened([70_000] * 500, memory)
    for tensor in tensors:
        read(file, tensor, count=10)
        assert memory.kept_bytes <= 2 * RANGE_BYTES
    assert store.num_bytes == len(store.content) - 100


def test_a_range_that_fails_can_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store, file, (tensor,) = opened([1000])
    fails = [OSError("once")]

    def failing(found: StoredObject, start: int, end: int) -> bytes:
        if fails:
            raise fails.pop()
        return store.content[start:end]

    monkeypatch.setattr(store, "read", failing)
    with pytest.raises(OSError, match="once"):
        read(file, tensor)
    assert read(file, tensor) == store.content[100:]


def test_the_share_of_an_exports_memory_has_bounds() -> None:
    assert ReadingMemory.share_of(64_000_000) == 4 * RANGE_BYTES
    assert ReadingMemory.share_of(1_000_000_000) == 125_000_000
    assert ReadingMemory.share_of(1 << 40) == range_file._MOST_BYTES
