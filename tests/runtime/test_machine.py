"""Memory that was freed goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.fast,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc"),
]

# Four threads free 40 MB each in blocks of 64 KB, after one large block was freed. Prints the bytes that stay.
_PROGRAM = """
import ctypes, os, threading
from pathlib import Path
from qwonnx.runtime.machine import bound_heaps, give_back_memory

{bound}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(number):
    blocks = [libc.malloc(64 << 10) for _ in range(number)]
    for block in blocks:
        ctypes.memset(block, 1, 64 << 10)
    small = libc.malloc(64)  # so that the heap is not empty in the end
    for block in reversed(blocks):
        libc.free(block)


libc.free(libc.malloc(30 << 20))
ready = threading.Barrier(5)


def work():
    ready.wait()
    fill(640)
    ready.wait()
    ready.wait()


threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
before = resident()
ready.wait()
ready.wait()
give_back_memory()
print(resident() - before)
ready.wait()
"""


def _kept(bound: str, **environment: str) -> int:
    program = _PROGRAM.format(bound=bound)
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


def test_bounded_heaps_keep_little_of_what_threads_freed() -> None:
    assert _kept("bound_heaps()") < 30 << 20


def test_without_a_bound_the_ends_of_the_heaps_stay() -> None:
    """The counterproof. Where it fails, malloc has learned to trim them, and bound_heaps() may go."""
    assert _kept("") > 60 << 20


def test_what_the_user_has_set_for_malloc_stays() -> None:
    assert _kept("bound_heaps()", MALLOC_TRIM_THRESHOLD_=str(1 << 30), MALLOC_MMAP_THRESHOLD_=str(30 << 20)) > 60 << 20
