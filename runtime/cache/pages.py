"""Arrays of zeros: each page takes memory when it is first written, and can be given back to the system."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
_DISCARD: int | None = getattr(mmap, "MADV_DONTNEED", None)  # Linux; elsewhere pages stay


class PagedArray:
    """Zeros that take no memory until they are written.

    Args:
        shape, dtype: of the array.

    Raises:
        MemoryError: the system does not grant the address space.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        num_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        try:
            self._mapping = mmap.mmap(-1, max(1, num_bytes), **_PRIVATE)
        except (OSError, OverflowError, ValueError) as error:
            raise MemoryError(f"no address space for {num_bytes} bytes") from error
        self.array: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(self._mapping, dtype=np.uint8, count=num_bytes)
        self.array = self.array.view(dtype).reshape(shape)

    def discard(self, start: int, end: int, limit: int) -> None:
        """Give back the pages of a range of bytes. Their content is lost.

        Args:
            start, end: the range. A page that it shares with earlier bytes stays.
            limit: first byte after the range that is in use. The last page of the range goes too if it ends before this
                byte.
        """
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        last = min(-(-end // mmap.PAGESIZE), limit // mmap.PAGESIZE) * mmap.PAGESIZE
        if _DISCARD is not None and last > first:
            self._mapping.madvise(_DISCARD, first, last - first)
