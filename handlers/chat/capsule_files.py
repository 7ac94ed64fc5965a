"""Files of capsules: in a folder of this machine, private, or at any URL of fsspec.

A folder is trusted less than it may seem, because it is often shared. Only regular files are opened: a FIFO or a device
would block or never end, and a link may lead out of the folder.
"""

from __future__ import annotations

import contextlib
import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from qwonnx.runtime.errors import CapsuleError, SettingsError
from qwonnx.runtime.install import how_to_install
from qwonnx.runtime.sampling.entropy import fresh_id

# Of a file that is set aside, so that somebody can look at it; one a name, so that they do not pile up.
_ASIDE = ".failed"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a FIFO must not wait for its writer
_PLAIN = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)  # Windows would translate line ends
_ONLY_OWNER, _ONLY_OWNERS_FOLDER = 0o600, 0o700
_CHUNK_BYTES = 16 << 20


class CapsuleFiles(ABC):
    """A place for files with flat names. All methods block, from any thread, and may raise OSError."""

    @abstractmethod
    def read(self, name: str, at_most: int) -> bytes | None:
        """The content of a file, or None if there is none.

        Raises:
            CapsuleError: it is not a regular file, or is larger than at_most bytes; nothing was read.
        """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether a name is taken, by whatever."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file whole, or not at all."""

    @abstractmethod
    def remove(self, name: str) -> bool:
        """Remove a file; whether it was there."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections, if there are any."""

    @abstractmethod
    def set_aside(self, name: str) -> None:
        """Make room for a name. A folder keeps what was there under another name."""


def capsule_files(url: str, *, anew: bool = False) -> CapsuleFiles:
    """The files at a path or a URL.

    Args:
        url: of a folder.
        anew: with new connections; fsspec keeps those of equal URLs otherwise.

    Raises:
        SettingsError: fsspec or its package for such a URL is not installed.
    """
    if "://" not in url:
        return LocalFiles(Path(url))
    try:
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem
    except ImportError as error:
        raise SettingsError(f"capsules at a URL need fsspec: {how_to_install('capsules')}") from error
    try:
        system, folder = url_to_fs(url, skip_instance_cache=anew)
    except (ImportError, ValueError) as error:  # unknown protocol, or its package is missing
        raise SettingsError(f"capsules cannot be kept there: {' '.join(str(error).split())[:200]}") from error
    return LocalFiles(Path(folder)) if isinstance(system, LocalFileSystem) else RemoteFiles(system, folder)


class LocalFiles(CapsuleFiles):
    """A folder, made when the first file is written. It and its files can be read by this user only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str, at_most: int) -> bytes | None:
        try:
            number = os.open(self._folder / name, os.O_RDONLY | _PLAIN | _NO_LINK | _NO_WAIT)
        except FileNotFoundError:
            return None
        except OSError as error:
            if (self._folder / name).is_symlink():
                raise CapsuleError("the capsule's file is a link, which is not followed") from error
            raise
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            os.close(number)  # open() would leave a folder's descriptor behind
            raise CapsuleError("the capsule's file is not a regular file")
        with open(number, "rb", buffering=0) as file:
            _check_size(status.st_size, at_most)
            data = bytearray(status.st_size)
            filled = 0
            while filled < len(data) and (got := file.readinto(memoryview(data)[filled : filled + _CHUNK_BYTES])):
                filled += got
        return bytes(memoryview(data)[:filled])

    def exists(self, name: str) -> bool:
        return os.path.lexists(self._folder / name)

    def write(self, name: str, data: bytes) -> None:
        if not self._folder.is_dir():
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._folder.mkdir(mode=_ONLY_OWNERS_FOLDER, exist_ok=True)
        part = self._folder / f".{name}.{fresh_id()[:8]}"
        number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN | _NO_LINK, _ONLY_OWNER)
        try:
            with open(number, "wb") as file:
                file.write(data)
            part.replace(self._folder / name)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def set_aside(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).replace(self._folder / f"{name}{_ASIDE}")

    def remove(self, name: str) -> bool:
        try:
            (self._folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Nothing: no file stays open."""


class RemoteFiles(CapsuleFiles):
    """A folder of a file system of fsspec, whose own rights apply.

    Args:
        system: an fsspec.AbstractFileSystem.
        folder: its path there.
    """

    def __init__(self, system: Any, folder: str) -> None:
        self._system = system
        self._folder = folder.rstrip("/")

    def read(self, name: str, at_most: int) -> bytes | None:
        try:
            _check_size(self._system.size(self._path(name)), at_most)
            data: bytes = self._system.cat_file(self._path(name), start=0, end=at_most + 1)
        except FileNotFoundError:
            return None
        _check_size(len(data), at_most)  # it may have grown
        return data

    def exists(self, name: str) -> bool:
        return bool(self._system.exists(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        self._system.makedirs(self._folder, exist_ok=True)
        self._system.pipe_file(self._path(name), data)  # a capsule's size and digest reveal an incomplete file

    def set_aside(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    def remove(self, name: str) -> bool:
        try:
            self._system.rm_file(self._path(name))
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        self._system.clear_instance_cache()  # of its class: a later one is made anew

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


def _check_size(size: int | None, at_most: int) -> None:
    if size is None or size > at_most:
        raise CapsuleError(f"the capsule's file has {size} bytes and should have at most {at_most}")
