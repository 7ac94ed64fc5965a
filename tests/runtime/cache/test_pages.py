from __future__ import annotations

import mmap
import sys

import numpy as np
import pytest

from qwonnx.runtime.cache.pages import PagedArray
from tests.resident import resident_bytes

PAGE = mmap.PAGESIZE
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems keep the pages")


def _resident_pages() -> int:
    return resident_bytes() // PAGE


def test_memory_comes_with_writing_and_goes_with_discarding() -> None:
    num_pages = 4096
    before = _resident_pages()
    pages = PagedArray((num_pages, PAGE), np.dtype(np.uint8))
    assert _resident_pages() - before < num_pages // 4
    pages.array[:] = 1
    assert _resident_pages() - before > num_pages * 3 // 4
    pages.discard(0, num_pages * PAGE, num_pages * PAGE)
    assert _resident_pages() - before < num_pages // 4
    assert not pages.array.any()


def test_only_what_nobody_else_holds_is_discarded() -> None:
    pages = PagedArray((4 * PAGE,), np.dtype(np.uint8))
    pages.array[:] = 1
    pages.discard(PAGE // 2, 2 * PAGE + 1, 3 * PAGE - 1)  # the bytes after it begin within the third page
    assert pages.array[:PAGE].all()  # shared with the bytes before
    assert not pages.array[PAGE : 2 * PAGE].any()
    assert pages.array[2 * PAGE :].all()
    pages.discard(3 * PAGE, 3 * PAGE + 1, 4 * PAGE)
    assert not pages.array[3 * PAGE :].any()  # nothing else is on the page


def test_more_than_there_are_addresses_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="no address space"):
        PagedArray((1 << 50, 1 << 20), np.dtype(np.float32))
