"""Whether a disk has room for what is copied to it."""

from __future__ import annotations

import shutil
from pathlib import Path

from qwonnx.export.errors import AccessError
from qwonnx.runtime.quantities import bytes_text


def check_room(folder: Path, num_bytes: int, what: str) -> None:
    """Refuse a copy for which the disk has no room.

    Args:
        folder: to copy to; it may not exist yet.
        num_bytes: of the copy.
        what: is copied, for the message.

    Raises:
        CheckpointError: there is less.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise AccessError(
            f"{what} needs {bytes_text(num_bytes)} in {folder}, which has {bytes_text(free)} free: free some space, or"
            " choose another disk (HF_HOME for the hub's cache, TMPDIR for others)"
        )
