"""Memory and cores that this process may use, limited by the machine and by its container; and memory given back."""

from __future__ import annotations

import ctypes
import gc
import math
import os
from functools import cache
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
# glibc's M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_ARENA_MAX. The arrays of a step (1 MB for each row of logits) stay
# below both thresholds: taken from the system each time, they would cost a page fault for every 4 KiB.
_MALLOC_OPTIONS = {-1: 4 << 20, -3: 8 << 20, -8: 4}


def free_memory_bytes(cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO) -> int | None:
    """Bytes available without swapping; None if the system does not report them (not Linux).

    Args:
        cgroup: folder of the process's control group, version 2.
        meminfo: the kernel's account of the machine.
    """
    found = [number for number in (_of_machine(meminfo), _of_container(cgroup)) if number is not None]
    return min(found, default=None)


def memory_limit_bytes(
    cgroup: Path = _CGROUP, meminfo: Path = _MEMINFO, membership: Path = Path("/proc/self/cgroup")
) -> int | None:
    """The most memory that this process may ever have: the machine's, or less if one of its control groups (version 1
    or 2) has a limit. None if the system does not report it.

    Args:
        cgroup: where control groups are mounted.
        meminfo: the kernel's account of the machine.
        membership: the kernel's list of this process's groups.
    """
    found = [_field(meminfo, "MemTotal")]
    try:
        groups = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        groups = []
    for parts in groups:
        if len(parts) != 3 or (parts[1] and "memory" not in parts[1].split(",")):
            continue
        root, name = (cgroup / "memory", "memory.limit_in_bytes") if parts[1] else (cgroup, "memory.max")
        # In a container the list may name groups from outside: then only the mounted root is there.
        within = [part for part in parts[2].split("/") if part]
        for depth in range(len(within) + 1):
            found.append(_number(root.joinpath(*within[:depth], name)))
    return min((number for number in found if number is not None), default=None)


def anonymous_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Bytes of this process in memory that no file stands behind; None if the system does not report them."""
    parts = [_field(status, name) for name in ("RssAnon", "RssShmem")]
    return None if parts[0] is None else sum(part or 0 for part in parts)


def file_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Bytes of files in this process's memory: code, and whatever else is mapped; None if it is not reported."""
    return _field(status, "RssFile")


def _field(account: Path, name: str) -> int | None:
    """Bytes of a line such as "MemTotal:   16384 kB"."""
    try:
        for line in account.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return None


def _of_machine(meminfo: Path) -> int | None:
    return _field(meminfo, "MemAvailable")


def _of_container(cgroup: Path) -> int | None:
    try:
        limit = int((cgroup / "memory.max").read_text())
        current = int((cgroup / "memory.current").read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
        # memory.current includes cached file pages; the kernel drops inactive ones when memory is needed.
        cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError, IndexError):  # no limit ("max"), an older version, or another system
        return None
    return max(0, limit - current + cached)


def cpu_quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Cores that a container's cgroup allows; None unless that is less than the machine's own number.

    ONNX Runtime counts the machine's cores: in a container with 2 of 64 cores, 64 threads would thrash.
    """
    try:
        quota, period = path.read_text().split()[:2]
        cores = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # another system, an older cgroup, or "max"
        return None
    return cores if 0 < cores < (os.cpu_count() or cores) else None


def prepare_process() -> None:
    """Settings of libraries for a process of our own that only serves; before numpy is imported.

    A server multiplies no matrices with numpy, so OpenBLAS needs no threads: loaded, it would start one for each core.
    What the user has set stays as it is. Imports make much that lives on and no garbage, so the collector rests until
    settle_process().
    """
    gc.disable()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    bound_heaps()


def settle_process() -> None:
    """After prepare_process(), once the process serves: what there is now lives on, so the collector leaves it out."""
    gc.freeze()
    gc.enable()


def bound_heaps() -> None:
    """Make malloc keep less of what was freed; for a process of our own, before its threads start.

    glibc has up to eight heaps a core, and malloc_trim leaves the end of each. That end may grow to twice the largest
    block that was ever freed. What the user has set for malloc stays as it is. Does nothing without glibc.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is None or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    for option, value in _MALLOC_OPTIONS.items():
        mallopt(option, value)


def give_back_memory() -> None:
    """Return freed memory to the system; does nothing without glibc. Takes milliseconds.

    glibc keeps the memory of large requests and forms for each thread that freed some: hundreds of megabytes after a
    prompt of megabytes, or after an hour of hostile forms.
    """
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _libc() -> object:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows has no such library
        return None
