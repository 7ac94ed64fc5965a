"""The folder of an unfinished verification: `.NAME.verify`, beside the artifact NAME, or where the user says.

    record.json        the fingerprint of what is compared, and what is done; replaced as a whole after each step
    *.npy              arrays that steps leave for later ones

A step first writes its arrays, then says in the record that it is done. An array that the record names has its size and
a checksum there, so a file that a crash cut short is not used. Everything is computed again if the fingerprint differs.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwonnx.export.errors import OutputError
from qwonnx.export.weight_files.file_lock import lock_file

_RECORD = "record.json"
_LOCK = "lock"
_CHUNK_BYTES = 16 << 20


def work_folder_of(artifact: Path) -> Path:
    """The folder of an artifact's verification."""
    path = artifact.resolve()
    return path.parent / f".{path.name}.verify"


class WorkFolder:
    """An opened folder. `done` has what steps have said, by their names.

    resumed: whether it goes on with the work of an earlier process.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.folder = folder
        self._fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))
        self.done: dict[str, Any] = self._earlier()
        self.resumed = bool(self.done)
        if not self.resumed:
            self._clear()

    def finish(
        self, step: str, value: Any, arrays: Mapping[str, npt.NDArray[Any]], replaces: str | None = None
    ) -> None:
        """Write arrays, and say that a step is done.

        Args:
            step: its name.
            value: for `done`, as JSON has it.
            arrays: by the names under which `array` finds them.
            replaces: an array that is removed, because no later step needs it.
        """
        for name, values in arrays.items():
            with (self.folder / f"{name}.npy").open("wb") as file:
                np.save(file, values)
        self.finish_mapped(step, value, tuple(arrays), replaces)

    def finish_mapped(self, step: str, value: Any, names: Sequence[str], replaces: str | None = None) -> None:
        """The same for arrays of `mapped`, which the step has filled."""
        files = self.done.setdefault("files", {})
        files.update({name: self._facts(name) for name in names})
        files.pop(replaces, None)
        self.note(step, value)
        if replaces is not None:
            (self.folder / f"{replaces}.npy").unlink(missing_ok=True)

    def note(self, step: str, value: Any) -> None:
        """Say that a step is done."""
        self.done[step] = value
        new = self.folder / f"{_RECORD}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump({"fingerprint": self._fingerprint, "done": self.done}, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.folder / _RECORD)

    def mapped(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """A new array in a file, to be filled."""
        path = self.folder / f"{name}.npy"
        made: npt.NDArray[np.float32] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        return made

    def array(self, name: str) -> npt.NDArray[Any]:
        """An array that a step has written, mapped."""
        found: npt.NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return found

    def remove(self) -> None:
        """All of it: the verification has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _earlier(self) -> dict[str, Any]:
        """What an earlier process has done; nothing if it compared something else or its files are damaged."""
        try:
            record = json.loads((self.folder / _RECORD).read_text(encoding="utf-8"))
            done: dict[str, Any] = record["done"]
            if record["fingerprint"] != self._fingerprint:
                return {}
            sound = all(self._facts(name) == facts for name, facts in done.get("files", {}).items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
        return done if sound else {}

    def _facts(self, name: str) -> list[int]:
        """Size and checksum of an array's file."""
        size = check = 0
        with (self.folder / f"{name}.npy").open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                size, check = size + len(chunk), zlib.crc32(chunk, check)
        return [size, check]

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name == _RECORD or path.suffix in (".npy", ".new"):
                path.unlink()


@contextmanager
def opened_work_folder(folder: Path, fingerprint: dict[str, Any]) -> Iterator[WorkFolder]:
    """Open the folder, locked; it stays when the block ends, unless the block removes it.

    Args:
        folder: to make, or of an earlier verification.
        fingerprint: everything that decides the results.

    Raises:
        OutputError: another verification works there, it is something else's, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        strange = [path.name for path in folder.iterdir() if path.name not in (_RECORD, _LOCK) and not _is_ours(path)]
        if strange:
            raise OutputError(f"{folder} has other files, such as {strange[0]}: give --work another folder")
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        lock_file(file, f"another verification works in {folder}: wait for it, or give --work another")
        try:
            yield WorkFolder(folder, fingerprint)
        except OSError as error:
            raise _cannot_write(folder, error) from error
    finally:
        os.close(file)


def _is_ours(path: Path) -> bool:
    return path.suffix in (".npy", ".new")


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {folder} ({error.strerror or error}): free some space, or give --work a folder elsewhere"
    )
