"""Memory that was freed goes back to the system; limits of memory are found."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from qwonnx.runtime.machine import anonymous_bytes, file_bytes, memory_limit_bytes

pytestmark = pytest.mark.fast
on_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")

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


@on_glibc
def test_bounded_heaps_keep_little_of_what_threads_freed() -> None:
    assert _kept("bound_heaps()") < 30 << 20


@on_glibc
def test_without_a_bound_the_ends_of_the_heaps_stay() -> None:
    """The counterproof. Where it fails, malloc has learned to trim them, and bound_heaps() may go."""
    assert _kept("") > 60 << 20


@on_glibc
def test_what_the_user_has_set_for_malloc_stays() -> None:
    assert _kept("bound_heaps()", MALLOC_TRIM_THRESHOLD_=str(1 << 30), MALLOC_MMAP_THRESHOLD_=str(30 << 20)) > 60 << 20


MEMINFO = "MemTotal:       16000 kB\nMemFree:         9000 kB\nMemAvailable:   12000 kB\n"


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("", {}, 16_000 * 1024),
        ("0::/a/b", {"memory.max": "max", "a/memory.max": "5000000", "a/b/memory.max": "max"}, 5_000_000),
        ("0::/", {"memory.max": "3000000"}, 3_000_000),
        # a container's list may name a group that is not visible inside: its mount has the limit
        ("0::/docker/1234", {"memory.max": "4000000"}, 4_000_000),
        ("5:memory:/a\n4:cpu:/", {"memory/a/memory.limit_in_bytes": "7000000"}, 7_000_000),
        ("9:cpu,memory:/a", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 16_000 * 1024),
        ("0::/a", {"a/memory.max": "9000000000"}, 16_000 * 1024),
        ("not a group", {}, 16_000 * 1024),
    ],
)
def test_the_limit_is_the_machines_memory_or_that_of_any_control_group_above(
    tmp_path: Path, membership: str, limits: dict[str, str], expected: int
) -> None:
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "membership").write_text(membership)
    assert memory_limit_bytes(tmp_path, tmp_path / "meminfo", tmp_path / "membership") == expected


def test_a_system_that_reports_no_memory_has_no_limit(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert memory_limit_bytes(nowhere, nowhere, nowhere) is None
    assert anonymous_bytes(nowhere) is None
    assert file_bytes(nowhere) is None


def test_anonymous_memory_is_what_no_file_stands_behind(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmRSS:\t 900 kB\nRssAnon:\t 300 kB\nRssFile:\t 500 kB\nRssShmem:\t 100 kB\n")
    assert anonymous_bytes(status) == 400 * 1024
    assert file_bytes(status) == 500 * 1024
