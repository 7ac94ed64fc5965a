"""Weight files beside the graph: sharded, aligned, written front to back, hashed while they are written.

A quantised weight has codes and scales that are made together, slice by slice, while each must lie in one piece. So
several tensors may be written at a time, each into another file: a tensor goes to the first file that nobody is writing
to and that has room. Nothing is held back or written twice, whatever a tensor's size.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from qwonnx.export.artifact import FileEntry
from qwonnx.export.errors import OutputError

SHARD_BYTES = 4 << 30

# A page: ONNX Runtime maps tensors into memory, and maps whole pages.
ALIGNMENT = 4096

# The disk, the user's share of it, or the file system's limit on a file's size.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """Where a tensor's bytes lie."""

    file: str  # relative to the artifact's folder
    offset: int
    num_bytes: int


class ExternalDataWriter:
    """Writes weights-00001.bin and so on into a folder. Not thread-safe: one thread writes.

    `begin` a tensor, `write` to what it returns until the announced bytes are there; then its file is free for the next
    one. Close the writer, or use it as a context manager, before asking for `files`.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._shard_bytes = shard_bytes
        self._shards: list[_Shard] = []
        self._remaining = 0  # of what `require_space` was asked for; only for messages

    def __enter__(self) -> ExternalDataWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def require_space(self, num_bytes: int) -> None:
        """Check that the disk has room for so many bytes before any is written.

        Raises:
            OutputError: it has not.
        """
        self._remaining = num_bytes
        free = shutil.disk_usage(self._folder).free
        if free < num_bytes:
            raise OutputError(
                f"{self._folder.parent} has {_megabytes(free)} free and the weights need {_megabytes(num_bytes)}:"
                " free some space or choose another place"
            )

    def begin(self, num_bytes: int) -> TensorWriter:
        """Start a tensor of a known size.

        Raises:
            OutputError: a new file cannot be made.
        """
        shard = next((shard for shard in self._shards if shard.has_room(num_bytes, self._shard_bytes)), None)
        if shard is None:
            name = f"weights-{len(self._shards) + 1:05d}.bin"
            try:
                shard = _Shard(self._folder / name)
            except OSError as error:
                raise self._output_error(error, num_bytes) from error
            self._shards.append(shard)
        shard.busy = num_bytes > 0
        return TensorWriter(self, shard, num_bytes)

    def close(self) -> None:
        """Close all files; they are complete if every tensor that was begun is."""
        for shard in self._shards:
            shard.close()

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files that were written, with their hashes."""
        assert not any(shard.busy for shard in self._shards), "a tensor is not complete"
        return tuple(FileEntry(shard.path.name, shard.size, shard.digest.hexdigest()) for shard in self._shards)

    def _append(self, shard: _Shard, content: memoryview) -> None:
        try:
            shard.append(content)
        except OSError as error:
            raise self._output_error(error, content.nbytes) from error
        self._remaining = max(0, self._remaining - content.nbytes)

    def _output_error(self, error: OSError, num_bytes: int) -> OutputError:
        place = self._folder.parent
        if error.errno not in _FULL:
            return OutputError(f"cannot write to {place} ({error.strerror or error}): choose another place")
        free = shutil.disk_usage(self._folder).free
        missing = max(self._remaining, num_bytes)
        return OutputError(
            f"cannot write to {place} ({error.strerror}): it has {_megabytes(free)} free and {_megabytes(missing)} are"
            " still to be written; free some space or choose another place"
        )


class TensorWriter:
    """Takes the bytes of one tensor, from its first to its last."""

    def __init__(self, writer: ExternalDataWriter, shard: _Shard, num_bytes: int) -> None:
        self._writer = writer
        self._shard = shard
        self._missing = num_bytes
        padding = -shard.size % ALIGNMENT
        if padding:
            writer._append(shard, memoryview(bytes(padding)))
        self.tensor = ExternalTensor(shard.path.name, shard.size, num_bytes)

    def write(self, content: memoryview) -> None:
        """Append bytes.

        Raises:
            OutputError: the disk is full, or cannot be written for another reason.
        """
        self._missing -= content.nbytes
        assert self._missing >= 0, "more bytes than announced"
        self._writer._append(self._shard, content)
        if self._missing == 0:
            self._shard.busy = False


class _Shard:
    """One file, and the hash of what is in it so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.busy = False  # a tensor in it is not complete
        self.digest = hashlib.sha256()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o644)
        self._open = True

    def has_room(self, num_bytes: int, shard_bytes: int) -> bool:
        """Whether a tensor may follow: one that is larger than a file should be has a file of its own."""
        return not self.busy and (self.size == 0 or self.size + ALIGNMENT + num_bytes <= shard_bytes)

    def append(self, content: memoryview) -> None:
        rest = content.cast("B")
        while rest.nbytes:  # one call may take less than it is given, 2 GiB at most
            rest = rest[os.write(self._file, rest) :]
        self.digest.update(content)
        self.size += content.nbytes

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._file)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
