"""The models of this machine: a folder for each, with its artifact and a record of where it came from.

    ~/.cache/qwonnx/models/qwen3.5-0.8b+balanced/
        model.json      the record, written before the export
        artifact/       takes this name when the export is complete
        used            its time is that of the last use
        lock            held by whoever exports or removes

$QWONNX_CACHE is the folder in place of ~/.cache/qwonnx; $XDG_CACHE_HOME in that of ~/.cache. A model without an
artifact is unfinished: it is listed, and no name finds it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qwonnx.handlers.models.errors import ModelStoreError
from qwonnx.handlers.models.layout import ARTIFACT, LOCK, RECORD, USED
from qwonnx.handlers.models.names import ModelName, Reference, parse_reference
from qwonnx.runtime.artifact.manifest import MANIFEST_NAME

CACHE_VARIABLE = "QWONNX_CACHE"
_MAX_RECORD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """Where a model came from.

    source: repository, URL without credentials, or absolute path.
    revision: as asked for; None is the source's own main.
    commit: of the repository, once it is known.
    recipe: its name in the model's name.
    target: what it was exported for.
    why: why this recipe, in a sentence.
    pulled: time in seconds since 1970.
    """

    name: str
    source: str
    revision: str | None
    commit: str | None
    recipe: str
    target: str
    why: str
    pulled: float


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model in the store.

    artifact: its folder, which exists if the model is complete.
    used: time of its last use in seconds since 1970, or None.
    """

    name: ModelName
    record: Record
    artifact: Path
    used: float | None

    @property
    def folder(self) -> Path:
        """The model's own folder, with the record."""
        return self.artifact.parent

    @property
    def is_complete(self) -> bool:
        return (self.artifact / MANIFEST_NAME).is_file()

    @property
    def num_bytes(self) -> int:
        """Bytes on the disk, those of an unfinished export among them. Links are not followed."""
        total = 0
        for parent, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):
                    total += os.lstat(os.path.join(parent, name)).st_size
        return total


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """The folder for all that qwonnx keeps: $QWONNX_CACHE, else qwonnx in $XDG_CACHE_HOME, else ~/.cache/qwonnx.

    Raises:
        ModelStoreError: there is no home directory.
    """
    source = os.environ if environment is None else environment
    if given := source.get(CACHE_VARIABLE, "").strip():
        return Path(given).expanduser()
    xdg = source.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # the specification says to ignore others
        return Path(xdg) / "qwonnx"
    try:
        return Path.home() / ".cache" / "qwonnx"
    except RuntimeError as error:
        raise ModelStoreError(f"there is no home directory for models: set {CACHE_VARIABLE} to a folder") from error


class StoredModels:
    """
    Args:
        folder: of the models; by default `models` in cache_folder().
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_folder() / "models" if folder is None else folder

    def resolve(self, text: str) -> Path:
        """The artifact's folder of a model by its name, and note that it is used.

        Args:
            text: see names.py. Paths are not for this method: see artifact_path.py.

        Raises:
            ModelStoreError: there is no such model, it is unfinished, or several have the name.
        """
        found = self.find(text)
        if not found.is_complete:
            raise ModelStoreError(f"{found.name} is not pulled to its end: run qwonnx pull again, which goes on")
        with suppress(OSError):  # a store that may only be read can be used
            (found.folder / USED).touch()
        return found.artifact

    def find(self, text: str) -> PulledModel:
        """A model by its name, complete or not; raises as resolve does."""
        wanted = parse_reference(text)
        models = self.models()
        found = [model for model in models if _matches(model, wanted)]
        if not found:
            raise ModelStoreError(_unknown(text, wanted, models))
        if len(found) > 1:  # an unfinished one does not stand in the way of a complete one
            found = [model for model in found if model.is_complete] or found
        if len(found) > 1:
            raise ModelStoreError(f"{text} may be {_listed(found)}: say which")
        return found[0]

    def models(self) -> list[PulledModel]:
        """All models, by name. What is not a model's folder is left alone, and so is a link.

        Raises:
            ModelStoreError: the store's folder cannot be read.
        """
        try:
            entries = sorted(os.scandir(self.folder), key=lambda entry: entry.name)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ModelStoreError(f"cannot read {self.folder} ({error.strerror}): check it, or {_REMEDY}") from error
        found = (model_in(Path(entry.path)) for entry in entries if entry.is_dir(follow_symlinks=False))
        return [model for model in found if model is not None]

    def remove(self, text: str, *, even_if_used: bool = False) -> int:
        """Remove a model, and return the bytes that this frees. Nothing outside its folder is touched.

        Processes that have mapped its files keep them until they end; the disk's space comes back then.

        Raises:
            ModelStoreError: there is no such model, a process uses it (unless even_if_used) or exports it, or it cannot
                be removed.
        """
        model = self.find(text)
        if not even_if_used and (users := users_of(model.folder)):
            raise ModelStoreError(f"{model.name} is in use by process {users[0]}: end it first, or give --force")
        num_bytes = model.num_bytes
        try:
            with self.exclusive(model.name):
                # It is no model any more from this line on, whatever happens to the rest.
                doomed = Path(tempfile.mkdtemp(prefix=".removed-", dir=self.folder))
                model.folder.rename(doomed / ARTIFACT)
                shutil.rmtree(doomed)
        except OSError as error:
            raise ModelStoreError(f"cannot remove {model.folder} ({error.strerror}): check its permissions") from error
        return num_bytes

    def folder_of(self, name: ModelName) -> Path:
        return self.folder / name.folder_name

    def model(self, name: ModelName) -> PulledModel | None:
        """The model of a whole name, complete or not."""
        folder = self.folder_of(name)
        return None if folder.is_symlink() else model_in(folder)

    def write_record(self, name: ModelName, record: Record) -> None:
        """Write a model's record, at once or not at all.

        Raises:
            OSError: the store cannot be written.
        """
        folder = self.folder_of(name)
        file, path = tempfile.mkstemp(prefix=".model-", dir=folder)
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            json.dump(asdict(record), stream, indent=1)
        os.replace(path, folder / RECORD)

    @contextmanager
    def exclusive(self, name: ModelName) -> Iterator[Path]:
        """Make a model's folder if there is none, and keep other processes from exporting into it or removing it.

        Raises:
            ModelStoreError: another process does.
            OSError: the store cannot be written.
        """
        folder = self.folder_of(name)
        folder.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink():
            raise ModelStoreError(f"{folder} is a link, and the store follows none: remove it first")
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            _lock(file, name)
            yield folder
        finally:
            os.close(file)


_REMEDY = f"set {CACHE_VARIABLE} to another folder"


def users_of(folder: Path) -> list[int]:
    """Processes, other than this one, that map files of a folder; empty where the system does not tell (not Linux)."""
    prefix, found = os.fsencode(os.path.realpath(folder)) + b"/", []
    for entry in Path("/proc").glob("[0-9]*"):
        if entry.name == str(os.getpid()):
            continue
        with suppress(OSError):  # ended, or another user's
            if prefix in (entry / "maps").read_bytes():
                found.append(int(entry.name))
    return sorted(found)


def _lock(file: int, name: ModelName) -> None:
    if os.name != "posix":
        return  # nothing exports there
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ModelStoreError(f"another process pulls or removes {name}: wait for it") from error
    except OSError:
        pass  # a file system without locks


def model_in(folder: Path) -> PulledModel | None:
    """The model of a folder; None if it is none: no record, or one that does not belong there."""
    try:
        with (folder / RECORD).open("rb") as file:
            record = _record(json.loads(file.read(_MAX_RECORD_BYTES)))
        name = ModelName(record.name, record.revision, record.recipe)
    except (OSError, ValueError, TypeError, ModelStoreError, RecursionError):
        return None
    if name.folder_name != folder.name:
        return None
    try:
        used = (folder / USED).stat().st_mtime
    except OSError:
        used = None
    return PulledModel(name, record, folder / ARTIFACT, used)


def _record(content: Any) -> Record:
    """
    Raises:
        TypeError: a field is missing, unknown, or of another type.
    """
    record = Record(**content)
    for field in fields(Record):
        value = getattr(record, field.name)
        if field.name == "pulled":
            valid = isinstance(value, float | int)
        else:
            valid = isinstance(value, str) or (value is None and field.name in ("revision", "commit"))
        if not valid:
            raise TypeError(field.name)
    return record


def _matches(model: PulledModel, wanted: Reference) -> bool:
    own = model.record.source if wanted.is_repository else model.name.name
    return (
        own.lower() == wanted.name.lower()
        and wanted.revision in (model.name.revision, model.record.commit)
        and wanted.recipe in (None, model.name.recipe)
    )


def _unknown(text: str, wanted: Reference, models: list[PulledModel]) -> str:
    """What to do about a name that no model has."""
    same = [model for model in models if wanted.name.lower() in (model.name.name, model.record.source.lower())]
    if same:
        return f"{text} is not pulled: use {_listed(same)}, or run qwonnx pull"
    short = wanted.name.rpartition("/")[2].lower()
    names = {model.name.name: str(model.name) for model in models}
    near = [names[name] for name in get_close_matches(short, names, n=3)]
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    if wanted.is_repository:
        return f"{text} is neither a folder nor a pulled model: run qwonnx pull {text.partition(':')[0]}{hint}"
    remedy = "qwonnx list shows all" if models else "give a folder, or run qwonnx pull OWNER/NAME"
    return f"{text} is neither a folder nor a pulled model: {remedy}{hint}"


def _listed(models: list[PulledModel]) -> str:
    return " or ".join(str(model.name) for model in models)
