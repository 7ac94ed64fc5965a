"""Downloads a large file of the hub into its cache, so that a later run goes on where this one ended.

The hub's own client starts such a file anew in every process. This puts the whole file where the client looks for it,
under its sha256, which is checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from qwonnx.export.checkpoint.remote.addresses import reason_of
from qwonnx.export.checkpoint.remote.http_client import HttpClient
from qwonnx.export.checkpoint.remote.store import StoredObject
from qwonnx.export.errors import AccessError

_PART = ".qwonnx.incomplete"
_READ_BYTES = 1 << 20
# The hub serves larger files only to its own client, in chunks.
MAX_BYTES = 50_000_000_000


def part_bytes(blobs: Path, found: StoredObject) -> int:
    """Bytes of a file that are there already.

    Args:
        blobs: the repository's folder of contents in the cache.
        found: a file whose sha256 is known.
    """
    assert found.sha256 is not None
    for path in (blobs / found.sha256, blobs / (found.sha256 + _PART)):
        with contextlib.suppress(OSError):
            return min(path.stat().st_size, found.size)
    return 0


def fetch_blob(client: HttpClient, url: str, found: StoredObject, blobs: Path, take: Callable[[int], None]) -> None:
    """Download the rest of a file.

    Args:
        client: asks the hub.
        url: of the file.
        found: the file, whose sha256 is known.
        blobs: the repository's folder of contents in the cache.
        take: called with the number of bytes after every piece, and at once with that of those that are there. What it
            raises ends the download.

    Raises:
        AccessError: the file cannot be read or written, another process writes it, or it has another sha256.
    """
    assert found.sha256 is not None
    target = blobs / found.sha256
    part = blobs / (found.sha256 + _PART)
    try:
        blobs.mkdir(parents=True, exist_ok=True)
        file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            _lock(file, part)
            digest = hashlib.sha256()
            place = 0
            while place < found.size and (content := os.read(file, min(_READ_BYTES, found.size - place))):
                digest.update(content)
                place += len(content)
            take(place)

            def write(content: bytes) -> None:
                rest = memoryview(content)
                while rest.nbytes:
                    rest = rest[os.write(file, rest) :]
                digest.update(content)
                take(len(content))

            client.copy(url, place, found.size, write)
            if digest.hexdigest() != found.sha256:
                part.unlink()
                raise AccessError(f"{url} came with another sha256 than the hub states: run the command again")
            part.rename(target)
        finally:
            os.close(file)
    except OSError as error:
        raise AccessError(
            f"{blobs} cannot be written ({reason_of(error)}): free some space, or set HF_HOME to another disk"
        ) from error


def _lock(file: int, part: Path) -> None:
    import fcntl  # only POSIX has it; a plan, which downloads no large file, runs anywhere

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AccessError(f"another process downloads {part}: wait for it") from error
    except OSError:
        """The file system has no locks; two downloads at once would show in the sha256."""
