"""A checkpoint's folder elsewhere: its names and text files in a mirror, its tensors read in ranges.

Tensors are never copied to the disk. Only an adapter is, whole: it is small, and its hash is a part of its identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from qwonnx.export.checkpoint.chosen_files import (
    INDEX_NAME,
    PYTORCH_INDEX_NAME,
    PYTORCH_NAME,
    SINGLE_NAME,
    read_index,
)
from qwonnx.export.checkpoint.needed_files import TEXT_FILES, is_text_file
from qwonnx.export.checkpoint.remote.addresses import FolderUrl
from qwonnx.export.checkpoint.remote.disk_room import check_room
from qwonnx.export.checkpoint.remote.fsspec_store import FsspecStore
from qwonnx.export.checkpoint.remote.http_store import HttpStore
from qwonnx.export.checkpoint.remote.mirror import Mirror, is_plain
from qwonnx.export.checkpoint.remote.range_file import RangeFile, ReadingMemory
from qwonnx.export.checkpoint.remote.store import Store, StoredObject, changed
from qwonnx.export.checkpoint.safetensors_header import MAX_HEADER_BYTES
from qwonnx.export.checkpoint.torch_file import TORCH_SUFFIXES
from qwonnx.export.errors import AccessError
from qwonnx.runtime.adapters.adapter_config import ADAPTER_WEIGHTS

_AT_ONCE = 16  # requests
_COPIED_BYTES = 8 << 20  # at a time


class RemoteFolder:
    """An opened folder.

    Args:
        store: that has it.
        name: of the folder.
        weights_file: the user's choice of tensors, see choose_files.

    Raises:
        CheckpointError: see Store; or a listed name or size is not one of a checkpoint.
    """

    def __init__(self, store: Store, name: str, weights_file: str | None = None) -> None:
        self._store = store
        self._memory = ReadingMemory()
        self._used: list[RangeFile] = []
        self._objects: dict[str, StoredObject] = {}
        self._mirror = Mirror(name, store.shown)
        self._add(list(store.objects().values()))
        with self.naming():
            wanted = [*_listed_in_index(self.folder), *([] if weights_file is None else [weights_file])]
        missing = [name for name in dict.fromkeys(wanted) if name not in self._objects and is_plain(name)]
        self._add(list(store.unlisted(missing).values()))

    @property
    def folder(self) -> Path:
        """With the names and the text files."""
        return self._mirror.folder

    @property
    def shown(self) -> str:
        """The folder's URL or name, for display."""
        return self._store.shown

    def naming(self) -> AbstractContextManager[None]:
        """Name the folder itself in errors, and not its mirror."""
        return self._mirror.naming()

    def files(self, names: Sequence[str]) -> list[RangeFile]:
        """Files with tensors, whose headers are read.

        Raises:
            CheckpointError: one cannot be read.
        """
        files = [RangeFile(self._store, self._objects[name], self._memory) for name in names]
        with ThreadPoolExecutor(_AT_ONCE, "qwonnx-headers") as pool:
            begun = [file for file in files if not file.name.endswith(TORCH_SUFFIXES)]  # others end with it
            list(pool.map(lambda file: file.fetch_header(_header_bytes), begun))
        self._used += files
        return files

    def limit_memory(self, num_bytes: int) -> int:
        """Let reading take a part of an export's memory; return the rest."""
        share = ReadingMemory.share_of(num_bytes)
        self._memory.limit(share)
        return num_bytes - share

    def copy_to(self, folder: Path, names: Sequence[str]) -> None:
        """Copy whole files into a folder.

        Raises:
            CheckpointError: one cannot be read, or the disk is full.
        """
        found = [self._objects[name] for name in names if name in self._objects]
        check_room(folder, sum(one.size for one in found), self.shown)
        for one in found:
            try:
                with (folder / one.name).open("wb") as file:
                    for start in range(0, one.size, _COPIED_BYTES):
                        file.write(self._store.read(one, start, min(start + _COPIED_BYTES, one.size)))
            except OSError as error:
                raise AccessError(
                    f"{self.shown} cannot be copied to {folder} ({error.strerror}): free some space, or set TMPDIR"
                ) from error

    def check_unchanged(self) -> None:
        """Check that the files that were used are still those that were listed.

        Raises:
            TensorFormatError: one has changed or is gone.
        """
        now = {**self._store.objects(), **self._store.unlisted([file.name for file in self._used])}
        for file in self._used:
            if now.get(file.name) != file.found:
                raise changed(str(file))

    def _add(self, listed: list[StoredObject]) -> None:
        added = self._mirror.add(listed)
        self._objects.update((found.name, found) for found in added)
        texts = [found for found in added if is_text_file(found.name) and found.size]
        with ThreadPoolExecutor(_AT_ONCE, "qwonnx-texts") as pool:
            for found, content in zip(texts, pool.map(self._whole, texts), strict=True):
                self._mirror.put(found, content)

    def _whole(self, found: StoredObject) -> bytes:
        return self._store.read(found, 0, found.size)


def open_url(address: FolderUrl, weights_file: str | None = None) -> RemoteFolder:
    """Open the folder at a URL; raises as RemoteFolder does."""
    store: Store
    if address.scheme in ("http", "https"):
        store = HttpStore(address, (*TEXT_FILES, SINGLE_NAME, PYTORCH_NAME, ADAPTER_WEIGHTS))
    else:
        store = FsspecStore(address)
    return RemoteFolder(store, address.folder_name, weights_file)


def _listed_in_index(folder: Path) -> tuple[str, ...]:
    paths = (folder / INDEX_NAME, folder / PYTORCH_INDEX_NAME)
    return tuple(sorted({file for path in paths if path.is_file() for file in read_index(path).values()}))


def _header_bytes(prefix: bytes) -> int:
    return min(int.from_bytes(prefix, "little"), MAX_HEADER_BYTES)
