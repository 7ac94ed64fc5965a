"""The checkpoint's files as a manifest lists them, with their hashes.

Files of this machine are hashed in a thread of their own while the export reads them. Hashing a file elsewhere would
take reading all of it again: it has what its store says of it.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from qwonnx.export.checkpoint.checkpoint import Checkpoint
from qwonnx.export.checkpoint.stored_file import FileState, LocalFile, unreadable
from qwonnx.export.errors import CheckpointError, TensorFormatError
from qwonnx.runtime.artifact.manifest import SourceFile

_READ_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


def source_files(tensors: Checkpoint, sha256_of: Callable[[LocalFile], str]) -> tuple[SourceFile, ...]:
    """The files with tensors, by name.

    Args:
        tensors: of the checkpoint.
        sha256_of: the hash of a file of this machine.
    """
    found = []
    for file in tensors.stored_files:
        state = file.state()
        if isinstance(file, LocalFile):
            found.append(SourceFile(file.name, state.size, sha256_of(file), None))
        else:
            found.append(SourceFile(file.name, state.size, state.sha256, str(state.version) or None))
    return tuple(found)


class SourceHashes:
    """Hashes the files of a checkpoint in the background; as a context manager, it ends with the block."""

    _known: ClassVar[dict[tuple[Path, FileState], str]] = {}  # in this process: stages of a model read the same files

    def __init__(self, tensors: Checkpoint) -> None:
        self._tensors = tensors
        self._begun = {file: file.state() for file in tensors.stored_files}
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, "qwonnx-hash")
        self._jobs = {
            file: self._pool.submit(self._hash, file, state)
            for file, state in self._begun.items()
            if isinstance(file, LocalFile)
        }

    def __enter__(self) -> SourceHashes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def files(self) -> tuple[SourceFile, ...]:
        """The files; waits for the hashes.

        Raises:
            TensorFormatError: a file has changed since the export began.
            CheckpointError: a file cannot be read, or is not what the hub has.
        """
        found = source_files(self._tensors, lambda file: self._jobs[file].result())
        for file, begun in self._begun.items():
            if file.state() != begun:
                raise TensorFormatError(
                    f"{file} changed while it was read: let whatever writes it finish, and start over"
                )
        return found

    def _hash(self, file: LocalFile, state: FileState) -> str:
        known = self._known.get((file.path, state))
        if known is not None:
            return known
        digest = hashlib.sha256()
        try:
            with file.path.open("rb", buffering=0) as stream:
                while not self._stopped.is_set() and (content := stream.read(_READ_BYTES)):
                    digest.update(content)
        except OSError as error:
            raise unreadable(file, error) from error
        if self._stopped.is_set():
            return ""
        expected = _stated_by_hub(file.path)
        if expected is not None and digest.hexdigest() != expected:
            raise CheckpointError(
                f"{file} has another sha256 than the hub: it was damaged while it was downloaded or later; remove"
                f" {file.path.resolve()} and run the command again"
            )
        self._known[file.path, state] = digest.hexdigest()
        return digest.hexdigest()


def _stated_by_hub(path: Path) -> str | None:
    """The sha256 that the hub stated of a file in its cache, which keeps it under this name; None: it is not one."""
    real = path.resolve()
    return real.name if real.parent.name == "blobs" and _SHA256.fullmatch(real.name) else None
