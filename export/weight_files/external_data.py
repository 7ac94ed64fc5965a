"""Writes weight files beside the graph, as layout.py places them: front to back, with their hashes.

Shards are independent, so several may be written at a time, each by one thread.

No bytes are held back or written twice, for tensors of any size. A file and its hash only grow, so an interrupted
export can continue from any size with a noted hash: see `journal.py`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from qwonnx.export.errors import OutputError
from qwonnx.export.weight_files.layout import ExternalTensor, ShardLayout, StoredSize, is_weight_file, lay_out
from qwonnx.runtime.artifact.manifest import FileEntry
from qwonnx.runtime.quantities import bytes_text

if TYPE_CHECKING:
    from hashlib import _Hash


# Full are the disk, the user's quota, or the file system's limit on a file's size.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of file systems that do not support fsync.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


def sync(file: int) -> None:
    """Wait until a file or a folder is on the disk, if the file system supports it."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


@dataclass(frozen=True, slots=True)
class HashedPrefix:
    """The first bytes of a file: their number, and the state of their sha256, which can continue."""

    size: int
    digest: _Hash

    @classmethod
    def empty(cls) -> HashedPrefix:
        return cls(0, hashlib.sha256())


@dataclass(frozen=True, slots=True)
class ShardPrefix:
    """The first bytes of each of a shard's files, by stream."""

    files: tuple[HashedPrefix, ...]

    @classmethod
    def empty(cls, layout: ShardLayout) -> ShardPrefix:
        return cls(tuple(HashedPrefix.empty() for _ in layout.files))


class Shard:
    """The files of one shard while they are written. Only one thread at a time writes a shard."""

    def __init__(self, writer: ExternalDataWriter, layout: ShardLayout, prefix: ShardPrefix) -> None:
        self.layout = layout
        self._writer = writer
        self._files = [
            _HashedFile(writer.folder / name, file) for name, file in zip(layout.files, prefix.files, strict=True)
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return sum(file.size for file in self._files)

    @property
    def is_complete(self) -> bool:
        return self.num_bytes == self.layout.num_bytes

    @property
    def prefix(self) -> ShardPrefix:
        """The bytes that were written so far."""
        return ShardPrefix(tuple(file.prefix for file in self._files))

    def cut(self) -> None:
        """Cut the files after their known first bytes.

        Raises:
            OutputError: they cannot be opened.
        """
        try:
            for file in self._files:
                file.cut()
        except OSError as error:
            raise self._writer.output_error(error) from error

    def open(self) -> None:
        """Make the files, or open them to continue.

        Raises:
            OutputError: they cannot be made.
        """
        try:
            for file in self._files:
                file.open()
        except OSError as error:
            raise self._writer.output_error(error) from error

    def append(self, index: int, contents: Sequence[memoryview]) -> None:
        """Append the next bytes of weight `index` of the shard to each of its streams, after all earlier weights.

        Raises:
            OutputError: the disk is full, or cannot be written for another reason.
        """
        tensors = self.layout.places[index].tensors
        try:
            for file, tensor, content in zip(self._files[: len(tensors)], tensors, contents, strict=True):
                file.append(tensor, content)
        except OSError as error:
            raise self._writer.output_error(error) from error

    def finish(self) -> None:
        """Wait until the complete files are on the disk, and close them.

        Raises:
            OutputError: the disk does not take them.
        """
        assert self.is_complete, "a shard lacks bytes"
        try:
            for file in self._files:
                file.sync()
        except OSError as error:
            raise self._writer.output_error(error) from error
        self.close()

    def close(self) -> None:
        for file in self._files:
            file.close()

    def entries(self) -> list[FileEntry]:
        """The files, with their hashes."""
        assert self.is_complete, "a shard lacks bytes"
        return [FileEntry(file.path.name, file.size, file.prefix.digest.hexdigest()) for file in self._files]


class ExternalDataWriter:
    """The weight files of one artifact, in a folder. Lay them out, then write the shards.

    Close the writer, or use it as a context manager, before asking for `files`.
    """

    def __init__(self, folder: Path, shard_bytes: int | None = None) -> None:
        self.folder = folder
        self._shard_bytes = shard_bytes
        self._shards: tuple[Shard, ...] = ()

    def __enter__(self) -> ExternalDataWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lay_out(self, sizes: Sequence[StoredSize]) -> tuple[ShardLayout, ...]:
        """The places of weights of these sizes."""
        return lay_out(sizes, self._shard_bytes)

    def begin(self, layouts: Sequence[ShardLayout], prefixes: Sequence[ShardPrefix] | None = None) -> tuple[Shard, ...]:
        """The shards, not open yet. Bytes of the folder's weight files after these prefixes are dropped.

        Raises:
            OutputError: the disk has no room for the missing bytes.
        """
        _remove_others(self.folder, layouts)
        prefixes = prefixes or [ShardPrefix.empty(layout) for layout in layouts]
        self._shards = tuple(Shard(self, *pair) for pair in zip(layouts, prefixes, strict=True))
        for shard in self._shards:
            shard.cut()
        free, missing = self._free_bytes(), self._missing_bytes()
        if free < missing:
            raise OutputError(
                f"{self.folder.parent} has {bytes_text(free)} free and the weights need {bytes_text(missing)}:"
                " free some space or choose another place"
            )
        return self._shards

    def close(self) -> None:
        """Close all files; they are complete if every shard is."""
        for shard in self._shards:
            shard.close()

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The files that were written, with their hashes."""
        return tuple(entry for shard in self._shards for entry in shard.entries())

    def output_error(self, error: OSError) -> OutputError:
        """The OutputError of an error of the file system, with its remedy."""
        place = self.folder.parent
        if error.errno not in _FULL:
            return OutputError(f"cannot write to {place} ({error.strerror or error}): choose another place")
        return OutputError(
            f"cannot write to {place} ({error.strerror}): it has {bytes_text(self._free_bytes())} free and"
            f" {bytes_text(self._missing_bytes())} are still to be written; free some space or choose another place"
        )

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free

    def _missing_bytes(self) -> int:
        return sum(shard.layout.num_bytes - shard.num_bytes for shard in self._shards)


class _HashedFile:
    """One file that grows at its end, and the hash of its content."""

    def __init__(self, path: Path, prefix: HashedPrefix) -> None:
        self.path = path
        self.size = prefix.size
        self._digest = prefix.digest.copy()
        self._file: int | None = None

    @property
    def prefix(self) -> HashedPrefix:
        return HashedPrefix(self.size, self._digest.copy())

    def cut(self) -> None:
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            assert self.size == 0, "a file is gone"
            return
        os.ftruncate(file, self.size)
        os.close(file)

    def open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o644)

    def append(self, tensor: ExternalTensor, content: memoryview) -> None:
        """Append the next bytes of a tensor, with zeros as padding before its first."""
        if self.size < tensor.offset:
            self._write(memoryview(bytes(tensor.offset - self.size)))
        assert tensor.offset <= self.size <= tensor.offset + tensor.num_bytes - content.nbytes, "bytes out of place"
        self._write(content.cast("B"))

    def sync(self) -> None:
        assert self._file is not None
        sync(self._file)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, content: memoryview) -> None:
        assert self._file is not None, "the file is not open"
        rest = content
        while rest.nbytes:  # one call may write less than asked, and at most 2 GiB
            rest = rest[os.write(self._file, rest) :]
        self._digest.update(content)
        self.size += content.nbytes


def _remove_others(folder: Path, layouts: Sequence[ShardLayout]) -> None:
    """Remove weight files that are not part of this layout."""
    expected = {name for layout in layouts for name in layout.files}
    for path in folder.iterdir():
        if is_weight_file(path.name) and path.name not in expected:
            path.unlink()
