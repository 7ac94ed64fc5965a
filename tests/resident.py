"""How much memory a process holds at present, on Linux."""

from __future__ import annotations

import resource
from pathlib import Path


def resident_bytes(pid: int | str = "self") -> int:
    """Bytes of a process's pages that lie in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
