"""The folder of an unfinished export: `.NAME.incomplete`, in the same folder as NAME.

It contains the journal, which is locked while an export writes there. It is renamed to NAME when everything is written,
so NAME is always complete. When an export ends early, the folder stays for `--resume` if its journal has marks and the
checkpoint is not at fault; else it is removed. A new export without `--resume` starts over in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qwonnx.export.errors import ExportError, OtherExportError, OutputError, TensorFormatError
from qwonnx.export.weight_files.external_data import sync
from qwonnx.export.weight_files.file_lock import lock_file
from qwonnx.export.weight_files.fingerprint import difference
from qwonnx.export.weight_files.journal import JOURNAL_NAME, Journal
from qwonnx.export.weight_files.layout import is_weight_file

# How an error's message ends if the export can go on.
KEPT = "; what is written is kept: go on with --resume"


class UnfinishedExport:
    """The folder to write into, and its journal. Nothing in it changes before `begin`."""

    def __init__(self, folder: Path, journal: Journal, fingerprint: dict[str, Any], *, resumes: bool) -> None:
        self.folder = folder
        self.journal = journal
        self.has_begun = False
        self._fingerprint = fingerprint
        self._resumes = resumes

    def begin(self) -> None:
        """Remove the files of an earlier export, except weights with which this one continues."""
        for path in self.folder.iterdir():
            if path.name != JOURNAL_NAME and not (self._resumes and is_weight_file(path.name)):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not self._resumes:
            self.journal.start(self._fingerprint)
        self.has_begun = True


def incomplete_folder(out: Path) -> Path:
    """The folder of an artifact until it is complete."""
    return out.parent / f".{out.name}.incomplete"


@contextmanager
def unfinished_export(
    out: Path, fingerprint: dict[str, Any], *, resume: bool, overwrite: bool
) -> Iterator[UnfinishedExport]:
    """The folder that is renamed to `out` when the block ends without an error.

    Args:
        out: the artifact's folder.
        fingerprint: of this export.
        resume: continue an interrupted export; if there is none, start over.
        overwrite: replace `out` if it exists.

    Raises:
        OutputError: another export is writing there; the folder is not that of an export; with resume, the interrupted
            export had another fingerprint; the disk is full, the parent cannot be written, ...
    """
    folder = incomplete_folder(out)
    try:
        file = _open_and_lock(folder, out)
    except OSError as error:
        raise _cannot_write(out, error) from error
    try:
        try:
            journal = Journal(file)
        except OSError as error:
            raise _cannot_write(out, error) from error
        resumes = resume and journal.fingerprint is not None
        if resumes:
            _check_fingerprint(folder, journal, fingerprint)
        unfinished = UnfinishedExport(folder, journal, fingerprint, resumes=resumes)
        try:
            yield unfinished
            _take_name(folder, out, overwrite=overwrite)
        except BaseException as error:
            kept = journal.has_marks and not isinstance(error, TensorFormatError)
            if not kept:
                shutil.rmtree(folder, ignore_errors=True)
            hint = KEPT if kept and unfinished.has_begun else ""
            if isinstance(error, OSError):
                raise _cannot_write(out, error, hint) from error
            if hint and isinstance(error, ExportError):
                raise type(error)(f"{error}{hint}") from error
            raise
    finally:
        os.close(file)  # and with it the lock


def _open_and_lock(folder: Path, out: Path) -> int:
    """The journal's file, locked."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL_NAME
    while True:
        folder.mkdir(exist_ok=True)
        if not path.exists() and any(folder.iterdir()):
            raise OutputError(f"{folder} exists and is not an unfinished export: remove it first")
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # another export ended between these two lines, and renamed its folder
        try:
            lock_file(file, f"another export is writing {out}: wait for it, or choose another folder")
            if _is_same_file(file, path):
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _is_same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _check_fingerprint(folder: Path, journal: Journal, fingerprint: dict[str, Any]) -> None:
    assert journal.fingerprint is not None
    what = difference(journal.fingerprint, fingerprint)
    if what is not None:
        raise OtherExportError(
            f"{folder} was begun by another export ({what}): give the same checkpoint and options, or leave --resume"
            " out to start over"
        )


def _take_name(folder: Path, out: Path, *, overwrite: bool) -> None:
    """Rename the folder when all of it is on the disk. The journal is removed last, because resuming needs it."""
    for path in (*folder.iterdir(), folder):
        _sync_path(path)
    if overwrite and out.exists():
        previous = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".previous", dir=out.parent))
        out.rename(previous)  # replaces the empty folder
        folder.rename(out)
        shutil.rmtree(previous)
    else:
        folder.rename(out)
    (out / JOURNAL_NAME).unlink()
    _sync_path(out.parent)


def _sync_path(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        sync(file)
    finally:
        os.close(file)


def _cannot_write(out: Path, error: OSError, hint: str = "") -> OutputError:
    remedy = "free some space or choose another place"
    return OutputError(f"cannot write {out} ({error.strerror or error}): {remedy}{hint}")
