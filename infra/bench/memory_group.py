"""A control group with a limit of memory, for processes of a benchmark. Linux; needs the right to make groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class MemoryGroup:
    """A group within the group of this process."""

    folder: Path
    peak_file: str

    def join(self) -> None:
        """Move this process into it: for the child of a fork. Pages that it reads count from then on."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int | None:
        """The most memory that it had, cached pages of files included."""
        try:
            return int((self.folder / self.peak_file).read_text())
        except (OSError, ValueError):
            return None


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[MemoryGroup | None]:
    """A new group with this limit, removed in the end; None if this machine or its rights do not allow it."""
    made = _make(limit_bytes)
    try:
        yield made
    finally:
        if made is not None:
            made.folder.rmdir()


def _make(limit_bytes: int) -> MemoryGroup | None:
    for root, limit, peak in _kinds():
        folder = root / f"qwonnx-bench-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(limit_bytes))
            return MemoryGroup(folder, peak)
        except OSError:  # the controller is not given to this group's children
            folder.rmdir()
    return None


def _kinds() -> Iterator[tuple[Path, str, str]]:
    """This process's groups with the names of their files, by version of control groups."""
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield _MOUNT / "memory" / path.strip("/"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"
        elif not controllers:
            yield _MOUNT / path.strip("/"), "memory.max", "memory.peak"
