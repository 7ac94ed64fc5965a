"""A temporary folder with the names of a folder elsewhere: its text files, and an empty file for every other name.

Whatever decides by names and texts (choose_files, foreign_formats, text_files, ...) works on it as on a local
checkpoint. Listings are untrusted: only a plain name becomes a path.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from qwonnx.export.checkpoint.needed_files import is_text_file
from qwonnx.export.checkpoint.remote.store import StoredObject
from qwonnx.export.errors import CheckpointError, ExportError
from qwonnx.runtime.artifact.strict_json import quoted
from qwonnx.runtime.quantities import bytes_text

# An index of 370,000 tensors has 55 MB; all other text files of a checkpoint are smaller.
_MAX_TEXT_BYTES = 100_000_000
_MAX_TEXTS_BYTES = 300_000_000
_MAX_NAME_BYTES = 255


class Mirror:
    """The folder; it is removed with the object, or when the process ends.

    Args:
        name: of the folder elsewhere.
        shown: its URL, for errors.
    """

    def __init__(self, name: str, shown: str) -> None:
        self._shown = shown
        parent = tempfile.mkdtemp(prefix="qwonnx-")
        weakref.finalize(self, shutil.rmtree, parent, ignore_errors=True)
        self.folder = Path(parent) / (name if is_plain(name) else "checkpoint")
        self.folder.mkdir()

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Name the folder elsewhere in errors, and not this one."""
        try:
            yield
        except ExportError as error:
            if str(self.folder) not in str(error):
                raise
            raise type(error)(str(error).replace(str(self.folder), self._shown)) from error

    def add(self, listed: Iterable[StoredObject]) -> list[StoredObject]:
        """Make an empty file for every listed one with a safe name; return these.

        Raises:
            CheckpointError: a shard's name is not safe, or text files are too large.
        """
        safe = []
        for found in listed:
            if _is_safe(found.name):
                safe.append(found)
            elif found.name.endswith(".safetensors") and "/" not in found.name:
                raise CheckpointError(
                    f"{self._shown} lists a file {quoted(found.name)}, which is not a shard's name: rename it"
                )
        self._check_sizes([found for found in safe if is_text_file(found.name)])
        for found in safe:
            path = self.folder / found.name
            if not path.parent.is_file() and not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.touch()
        return safe

    def put(self, found: StoredObject, content: bytes) -> None:
        """Write a file that was added."""
        (self.folder / found.name).write_bytes(content)

    def _check_sizes(self, texts: list[StoredObject]) -> None:
        largest = max(texts, key=lambda found: found.size, default=None)
        if largest is not None and largest.size > _MAX_TEXT_BYTES:
            raise CheckpointError(
                f"{self._shown}/{largest.name} has {bytes_text(largest.size)}, and a checkpoint's has less than"
                f" {bytes_text(_MAX_TEXT_BYTES)}: it is not the model's own"
            )
        if sum(found.size for found in texts) > _MAX_TEXTS_BYTES:
            raise CheckpointError(
                f"{self._shown} has text files of more than {bytes_text(_MAX_TEXTS_BYTES)}: give a checkpoint's folder"
            )


def is_plain(name: str) -> bool:
    """Whether a name makes one printable part of a path."""
    return (
        name.isprintable()
        and name not in ("", ".", "..")
        and not set(name) & set('/\\:*?"<>|')
        and PurePosixPath(name).name == name
        and len(name.encode()) <= _MAX_NAME_BYTES
    )


def _is_safe(name: str) -> bool:
    """Whether a listed name is one of the folder, or of a folder in it."""
    parts = name.split("/")
    return len(parts) <= 2 and all(map(is_plain, parts))
