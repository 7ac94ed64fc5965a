"""The journal of an unfinished export: its inputs, and how far its weight files can be trusted.

One JSON object a line, each with a checksum, which detects a line that a crash cut short:

    {"fingerprint": {...}, "check": ...}        first: everything that decides the bytes, see `fingerprint.py`
    {"layout": "sha256", "check": ...}          which weights lie where
    {"shard": 3, "files": [[size, sha256], ...], "check": ...}                  a mark, repeatedly

A mark has the sizes and hashes of the first bytes of a shard's files. It stays valid, because the bytes depend only on
fingerprint and layout. It says nothing about the disk: after a power cut a file may be shorter than its marks say, or
have other bytes. So `resume.py` hashes the files again, and finds the last mark that is true.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from qwonnx.export.weight_files.external_data import ShardPrefix

JOURNAL_NAME = "export.journal"

# Five thousand shards of a hundred marks have 100 MB of lines. A larger file is not a journal, and is not read.
_MAX_JOURNAL_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Noted:
    """Size and sha256 of the first bytes of a file."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Mark:
    """The first bytes of the files of one shard."""

    shard: int  # its number, from 1
    files: tuple[Noted, ...]

    @classmethod
    def of(cls, shard: int, prefix: ShardPrefix) -> Mark:
        return cls(shard, tuple(Noted(file.size, file.digest.hexdigest()) for file in prefix.files))


class Journal:
    """An open journal; lines are added at its end. `unfinished.py` locks it."""

    def __init__(self, file: int) -> None:
        """Read a journal from a file that is open for reading and writing and may be empty.

        The first line that is not whole is dropped, with all lines after it.

        Raises:
            OSError: it cannot be read.
        """
        self._file = file
        self.fingerprint: dict[str, Any] | None = None
        self.layout: str | None = None
        self._marks: defaultdict[int, list[Mark]] = defaultdict(list)
        end = 0
        if os.fstat(file).st_size <= _MAX_JOURNAL_BYTES:
            with os.fdopen(os.dup(file), "rb") as stream:
                stream.seek(0)
                for line in stream:
                    if not self._take(line):
                        break
                    end += len(line)
        os.ftruncate(file, end)
        os.lseek(file, end, os.SEEK_SET)

    @property
    def has_marks(self) -> bool:
        """Whether work would be lost without this journal."""
        return bool(self._marks)

    def marks(self, shard: int) -> list[Mark]:
        """A shard's marks, in the order of its bytes."""
        return sorted(self._marks.get(shard, ()), key=lambda mark: [noted.size for noted in mark.files])

    def start(self, fingerprint: dict[str, Any]) -> None:
        """Empty the journal, and write a fingerprint."""
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self.fingerprint, self.layout = fingerprint, None
        self._marks.clear()
        self._add({"fingerprint": fingerprint})

    def begin_layout(self, layout: str) -> None:
        """Write the layout of the marks. Marks of another layout, from before an interruption, are dropped."""
        if self.layout == layout:
            return
        assert self.fingerprint is not None, "the journal was not started"
        if self.layout is not None:
            self.start(self.fingerprint)
        self.layout = layout
        self._add({"layout": layout})

    def add_mark(self, mark: Mark) -> None:
        """Write a mark.

        Raises:
            OSError: the disk is full, ...
        """
        self._add({"shard": mark.shard, "files": [[noted.size, noted.sha256] for noted in mark.files]})
        self._marks[mark.shard].append(mark)

    def _add(self, content: dict[str, Any]) -> None:
        rest = memoryview(_line(content))
        while rest.nbytes:
            rest = rest[os.write(self._file, rest) :]

    def _take(self, line: bytes) -> bool:
        """Take in one line; return whether it is valid."""
        try:
            content = json.loads(line)
            if not isinstance(content, dict) or _line({**content, "check": None}) != line:
                return False
            match content:
                case {"fingerprint": dict(fingerprint)}:
                    self.fingerprint = fingerprint
                case {"layout": str(layout)}:
                    self.layout = layout
                case {"shard": int(shard), "files": list(files)}:
                    self._marks[shard].append(Mark(shard, tuple(_noted(file) for file in files)))
                case _:
                    return False
        except (ValueError, RecursionError):
            return False
        return self.fingerprint is not None


def _noted(value: Any) -> Noted:
    match value:
        case [int(size), str(sha256)]:
            return Noted(size, sha256)
    raise ValueError(value)


def _line(content: dict[str, Any]) -> bytes:
    """A line with its checksum, in the only form that is valid."""
    body = {name: value for name, value in content.items() if name != "check"}
    checked = {**body, "check": zlib.crc32(_dump(body))}
    return _dump(checked) + b"\n"


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
