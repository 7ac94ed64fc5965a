"""A checkpoint's file with tensors, wherever it lies: on this machine, or elsewhere (remote/)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from qwonnx.export.errors import CheckpointError, TensorFormatError

# Fills a buffer with bytes from an offset of an opened file.
ReadInto = Callable[[memoryview, int], None]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes of a file."""

    offset: int
    num_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.num_bytes


@dataclass(frozen=True, slots=True)
class FileState:
    """One state of a file, found without reading it. version differs when the content does.

    sha256 is what a store states; None: it states none.
    """

    size: int
    version: int | str  # time of the last change in ns since 1970, or what a store calls the content
    sha256: str | None = None


class StoredFile(Protocol):
    """A file; it holds no open file. str() names it in errors. Methods are thread-safe."""

    @property
    def name(self) -> str:
        """In its folder."""
        ...

    def state(self) -> FileState:
        """The file's state now, or as its store listed it.

        Raises:
            CheckpointError: it cannot be found any more.
        """
        ...

    def stream(self) -> BinaryIO:
        """An opened file, for headers.

        Raises:
            OSError, CheckpointError: it cannot be opened.
        """
        ...

    def lay_out(self, tensors: Iterable[ByteRange]) -> None:
        """Say where the tensors lie, so that small ones can be read together."""
        ...

    def opened(self, whole: ByteRange | None = None) -> AbstractContextManager[ReadInto]:
        """Open it for reads of tensors.

        Args:
            whole: bytes of which all will be read, in small pieces.

        Raises:
            TensorFormatError: the file has become shorter.
            CheckpointError: it cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    def state(self) -> FileState:
        try:
            status = self.path.stat()
        except OSError as error:
            raise unreadable(self.path, error) from error
        return FileState(status.st_size, status.st_mtime_ns)

    def stream(self) -> BinaryIO:
        return self.path.open("rb")

    def lay_out(self, tensors: Iterable[ByteRange]) -> None:
        """Nothing: the operating system reads ahead."""

    @contextmanager
    def opened(self, whole: ByteRange | None = None) -> Iterator[ReadInto]:
        try:
            file = os.open(self.path, os.O_RDONLY)
            try:
                if whole is not None and hasattr(os, "posix_fadvise"):  # prefetches in large pieces
                    os.posix_fadvise(file, whole.offset, whole.num_bytes, os.POSIX_FADV_WILLNEED)
                yield lambda target, offset: self._read_into(file, target, offset)
            finally:
                os.close(file)
        except OSError as error:
            raise unreadable(self.path, error) from error

    def _read_into(self, file: int, target: memoryview, offset: int) -> None:
        """Fill `target`. One preadv may read less than asked, and at most 2 GiB."""
        while target.nbytes:
            num_read = os.preadv(file, [target], offset)
            if num_read == 0:
                raise TensorFormatError(f"{self.path} became shorter while it was read: let whatever writes it finish")
            target = target[num_read:]
            offset += num_read


def unreadable(file: object, error: OSError) -> CheckpointError:
    return CheckpointError(f"{file} cannot be read ({error.strerror or error}): check the file and its permissions")
