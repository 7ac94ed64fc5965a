"""Whether a disk has room for what is copied to it."""

from __future__ import annotations

import shutil
from pathlib import Path

from qwonnx.export.errors import AccessError
from qwonnx.runtime.quantities import bytes_text


def free_bytes(folder: Path) -> int:
    """Of the disk of a folder that may not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def on_one_disk(folder: Path, other: Path) -> bool:
    """Whether two folders, which may not exist yet, share their free space."""
    return _existing(folder).stat().st_dev == _existing(other).stat().st_dev


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def check_room(folder: Path, num_bytes: int, what: str) -> None:
    """Refuse a copy for which the disk has no room.

    Args:
        folder: to copy to; it may not exist yet.
        num_bytes: of the copy.
        what: is copied, for the message.

    Raises:
        CheckpointError: there is less.
    """
    free = free_bytes(folder)
    if num_bytes > free:
        raise AccessError(
            f"{what} needs {bytes_text(num_bytes)} in {folder}, which has {bytes_text(free)} free: free some space, or"
            " choose another disk (HF_HOME for the hub's cache, TMPDIR for others)"
        )
