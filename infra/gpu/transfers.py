"""Archives, cut into folders of a size that one transfer takes."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TRANSFER_BYTES = 60_000_000
_RESERVED_BYTES = 200_000  # of every transfer, for check.py and bundle.json
_XZ_PRESET = 3  # 6 takes twenty times as long for 2%


@dataclass(frozen=True, slots=True)
class Part:
    """A file that holds a part of an archive; its path is relative to the bundle."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SplitArchive:
    """A compressed tar file, and the hash of all of it."""

    name: str
    sha256: str
    parts: Sequence[Part]


class Transfers:
    """The folders of a bundle: transfer-1, transfer-2, ... Each is filled before the next begins."""

    def __init__(self, bundle: Path, transfer_bytes: int = TRANSFER_BYTES) -> None:
        self._bundle, self._room = bundle, transfer_bytes - _RESERVED_BYTES
        self._left, self.count = 0, 0

    def add(self, folder: Path, *, thoroughly: bool) -> SplitArchive:
        """Pack a folder's content, and add it under the folder's name. gzip takes a twentieth of the time of xz."""
        name, content = folder.name, _packed(folder, thoroughly)
        parts: list[Part] = []
        start = 0
        while start < len(content):
            if not self._left:
                self.count += 1
                self._left = self._room
            piece = content[start : start + self._left]
            path = self._bundle / f"transfer-{self.count}" / f"{name}.{len(parts) + 1}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(piece)
            sha256 = hashlib.sha256(piece).hexdigest()
            parts.append(Part(str(path.relative_to(self._bundle)), len(piece), sha256))
            self._left -= len(piece)
            start += len(piece)
        return SplitArchive(name, hashlib.sha256(content).hexdigest(), parts)


def _packed(folder: Path, thoroughly: bool) -> bytes:
    """The tar file of a folder's files, the same for the same content, by xz or by gzip. A copy is a link."""
    buffer, names = io.BytesIO(), dict[str, str]()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            entry, content = tarfile.TarInfo(path.relative_to(folder).as_posix()), path.read_bytes()
            first = names.setdefault(hashlib.sha256(content).hexdigest(), entry.name)
            if first == entry.name:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            else:
                entry.type, entry.linkname = tarfile.LNKTYPE, first
                archive.addfile(entry)
    plain = buffer.getbuffer()
    return lzma.compress(plain, preset=_XZ_PRESET) if thoroughly else gzip.compress(plain, 1, mtime=0)
