"""Which files of a folder are the model: those that transformers would load, where that is certain.

    --weights-file FILE                         that file, the index or series that it is of, or the files of an index
    an index, and no other model.safetensors    the files that the index lists
    model.safetensors, and no index             that file
    an index without any of its files           model.safetensors: save_pretrained left an old index beside it
    both, with files                            refused: one of them is older, and only the user knows which
    neither                                     one numbered series, or all files with a plain name

transformers takes model.safetensors wherever it exists. Files that are not read are named in a note. PyTorch's files
(pytorch_model.bin, its shards and their index) follow the same rules where there are no safetensors files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwonnx.export.checkpoint.foreign_formats import recognised_files, recognised_names, refuse_adapter
from qwonnx.export.checkpoint.torch_file import TORCH_SUFFIXES
from qwonnx.export.errors import CheckpointError, MissingTensorError
from qwonnx.runtime.adapters.adapter_config import ADAPTER_CONFIG
from qwonnx.runtime.artifact.strict_json import StrictJsonError, quoted, read_object

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PYTORCH_INDEX_NAME, PYTORCH_NAME = "pytorch_model.bin.index.json", "pytorch_model.bin"

# An index of 370,000 tensors, four for each projection of each expert, has about 55 MB.
_MAX_INDEX_BYTES = 100_000_000
# No separators; a backslash is one on Windows. is_plain_name also refuses names that do not print.
_PLAIN_NAME = re.compile(r"[^/\\]{1,200}\.(safetensors|bin|pt|pth)")
_MAX_NAME_BYTES = 255  # the limit of file systems
_SHARD_NUMBER = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
_PYTORCH_NAME = re.compile(r"pytorch_model.*\.bin(\.index\.json)?")


@dataclass(frozen=True, slots=True)
class _Names:
    """How transformers names a model's files."""

    single: str
    index_suffix: str

    @property
    def index(self) -> str:
        return self.single.partition(".")[0] + self.index_suffix


_SAFETENSORS = _Names(SINGLE_NAME, ".safetensors.index.json")
_PYTORCH = _Names(PYTORCH_NAME, ".bin.index.json")


@dataclass(frozen=True, slots=True)
class ChosenFiles:
    """The files that hold the model. index: tensor name -> file name, None without an index. notes are for display."""

    names: tuple[str, ...]
    index: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


def choose_files(folder: Path, weights_file: str | None = None) -> ChosenFiles:
    """Choose the files of a folder; opens none but the index.

    Args:
        folder: the checkpoint's.
        weights_file: the user's choice: the name of a file with weights or of an index in the folder.

    Raises:
        MissingTensorError: there is no safetensors file, or a file of an index or of a series is missing.
        CheckpointError: two sets of files may be the model; an adapter is there; the index is malformed, or names a
            file outside the folder.
    """
    names, files = _files(folder, weights_file)
    own = [name for name in files if not name.lower().startswith("adapter")]
    refuse_adapter(folder, has_weights=bool(own))
    if weights_file is not None:
        chosen = _chosen_by_user(folder, _name_within(folder, weights_file), files, names)
    else:
        chosen = _chosen_by_rule(folder, files, names)
    if names is _PYTORCH:
        chosen = dataclasses.replace(chosen, notes=(*chosen.notes, _torch_note(chosen.names)))
    unread = [name for name in files if name not in chosen.names]
    unread += sorted(f"{path.parent.name}/{path.name}" for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
    if not unread:
        return chosen
    shown = ", ".join(map(quoted, unread[:3])) + (", ..." if len(unread) > 3 else "")
    return ChosenFiles(chosen.names, chosen.index, (*chosen.notes, f"not read: {shown}"))


def _files(folder: Path, weights_file: str | None) -> tuple[_Names, list[str]]:
    """The files of the kind that is read, in their order: safetensors, unless only PyTorch's are there or chosen."""
    found = sorted(path.name for path in folder.iterdir() if path.is_file())  # a pipe would block
    tensors = [name for name in found if name.endswith(".safetensors")]
    if weights_file is not None and weights_file.endswith((*TORCH_SUFFIXES, _PYTORCH.index_suffix)):
        return _PYTORCH, [name for name in found if name.endswith(TORCH_SUFFIXES)]
    if tensors or (folder / INDEX_NAME).is_file():
        return _SAFETENSORS, tensors
    if any(map(_PYTORCH_NAME.fullmatch, found)):
        return _PYTORCH, [name for name in found if _PYTORCH_NAME.fullmatch(name) and name.endswith(".bin")]
    return _SAFETENSORS, tensors


def _torch_note(names: Sequence[str]) -> str:
    return (
        f"PyTorch: {quoted(names[0])} may run code in programs that load it with pickle; an export reads only where its"
        " tensors are. Ask where it comes from for safetensors"
    )


def _chosen_by_rule(folder: Path, files: list[str], names: _Names) -> ChosenFiles:
    index_path = folder / names.index
    if not index_path.is_file():
        return ChosenFiles((names.single,)) if (folder / names.single).is_file() else _without_index(folder, files)
    index = read_index(index_path)
    listed = _listed(index)
    if names.single in listed or not (folder / names.single).is_file():
        _check_all_there(folder, names.index, listed, files)
        return ChosenFiles(listed, index)
    there = set(files)
    found = [name for name in listed if name in there]
    if found:
        raise CheckpointError(
            f"{folder} has {names.single} and an index with {len(found)} of its {len(listed)} files ({found[0]}, ...),"
            f" two models of which one is older: choose with --weights-file {names.single} or --weights-file"
            f" {names.index}, or remove the older one"
        )
    note = (
        f"{names.index} lists {len(listed)} files that do not exist, as after save_pretrained into the model's own"
        f" folder: {names.single} is read, as transformers does"
    )
    return ChosenFiles((names.single,), notes=(note,))


def _chosen_by_user(folder: Path, name: str, files: list[str], names: _Names) -> ChosenFiles:
    if name in _indexes(folder, names):
        index = read_index(folder / name)
        listed = _listed(index)
        _check_all_there(folder, name, listed, files)
        return ChosenFiles(listed, index)
    if name not in files:
        hint = (
            recognised_names([name])
            or f"give one of its files: {', '.join(map(quoted, _choices(folder, files, names)))}"
        )
        raise CheckpointError(
            f"--weights-file {quoted(name)} is not a file with weights or an index of {folder}; {hint}"
        )
    _check_plain(folder, [name])
    if (folder / names.index).is_file() and name != names.single:
        index = read_index(folder / names.index)
        if name in (listed := _listed(index)):
            _check_all_there(folder, names.index, listed, files)
            return ChosenFiles(listed, index)
    series = _Series.of(name)
    return ChosenFiles((name,) if series is None else _in_series(folder, series, files))


def _name_within(folder: Path, weights_file: str) -> str:
    """The name of a file in the folder, where a user gave its path."""
    path = Path(weights_file)
    try:
        return path.name if path.name != weights_file and path.parent.samefile(folder) else weights_file
    except OSError:
        return weights_file


def _choices(folder: Path, files: list[str], names: _Names) -> list[str]:
    return [*_indexes(folder, names), *files][:6] or ["none is there"]


def _indexes(folder: Path, names: _Names) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*{names.index_suffix}") if path.is_file())


@dataclass(frozen=True, slots=True, order=True)
class _Series:
    """A numbered series of files: STEM-00001-of-00003SUFFIX."""

    stem: str
    total: int
    suffix: str

    @classmethod
    def of(cls, name: str) -> _Series | None:
        found = _SHARD_NUMBER.fullmatch(name)
        return None if found is None else cls(found[1], int(found[3]), found[4])

    def file(self, number: int) -> str:
        return f"{self.stem}-{number:05}-of-{self.total:05}{self.suffix}"


def _without_index(folder: Path, files: list[str]) -> ChosenFiles:
    """A numbered series, which must be complete, or all files of other names."""
    if not files:
        known = recognised_files(folder)
        raise MissingTensorError(
            f"{folder} has no safetensors files: give a folder in Hugging Face layout"
            if known is None
            else f"{folder} has no safetensors files, and {known}"
        )
    _check_plain(folder, files)
    series = {found for name in files if (found := _Series.of(name)) is not None}
    if not series:
        return ChosenFiles(tuple(files))
    others = [name for name in files if _Series.of(name) is None]
    if len(series) > 1 or others:
        firsts = [next(name for name in files if _Series.of(name) == one) for one in sorted(series)]
        shown = ", ".join(map(quoted, [*firsts, *others][:4]))
        raise CheckpointError(
            f"{folder} has no index and several sets of files ({shown}): choose with --weights-file and the name of a"
            " file of the set"
        )
    return ChosenFiles(_in_series(folder, series.pop(), files))


def _in_series(folder: Path, series: _Series, files: list[str]) -> tuple[str, ...]:
    names = tuple(name for name in files if _Series.of(name) == series)
    if len(names) != series.total:
        expected = (series.file(number) for number in range(1, series.total + 1))
        missing = next((name for name in expected if name not in names), "one")
        raise MissingTensorError(
            f"{folder} has {len(names)} of the {series.total} files that {names[0]} counts, and lacks"
            f" {quoted(missing)}: copy the others from where these come from"
        )
    return names


def _listed(index: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(set(index.values())))


def _check_all_there(folder: Path, index_name: str, listed: tuple[str, ...], files: list[str]) -> None:
    there = set(files)  # an index may list more names than a file system is asked for
    missing = [name for name in listed if name not in there]
    if not missing:
        return
    others = [name for name in files if name not in listed]
    if len(missing) < len(listed):
        raise MissingTensorError(
            f"shard {missing[0]} is missing from {folder}, which has {len(listed) - len(missing)} of the {len(listed)}"
            f" files that {index_name} lists: a copy or a save was interrupted; copy the rest from where these are from"
        )
    remedy = (
        f"remove the index, or choose with --weights-file {others[0]}"
        if others
        else (recognised_files(folder) or "copy the files from where the index comes from")
    )
    raise MissingTensorError(
        f"{folder / index_name} lists {len(listed)} files and none exists (save_pretrained into a model's own folder"
        f" leaves such an index): {remedy}"
    )


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name, of an index.

    Raises:
        CheckpointError: it is malformed, or names a file outside its folder.
    """
    restore = "restore it from where the checkpoint comes from, or remove it"
    try:
        weight_map: Any = read_object(path, _MAX_INDEX_BYTES).get("weight_map")
    except StrictJsonError as error:
        raise CheckpointError(f"{path} is malformed ({error}): {restore}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map: {restore}")
    suffix = ".bin" if path.name.endswith(_PYTORCH.index_suffix) else ".safetensors"
    for shard in weight_map.values():
        if not is_plain_name(shard) or not shard.endswith(suffix):
            raise CheckpointError(
                f"{path} names {quoted(shard)}, which is not a file of its folder: do not use this checkpoint"
            )
    return weight_map


def _check_plain(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if not is_plain_name(name):
            raise CheckpointError(f"{folder} has a file {quoted(name)}, which is not a shard's name: rename it")


def is_plain_name(name: Any) -> bool:
    """Whether a value is a printable name of a file with weights in the folder itself."""
    return (
        isinstance(name, str)
        and name.isprintable()  # first: it refuses names that cannot be encoded
        and _PLAIN_NAME.fullmatch(name) is not None
        and len(name.encode()) <= _MAX_NAME_BYTES
    )
