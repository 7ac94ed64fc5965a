"""A checkpoint's tensors by name, from one safetensors file or from shards that an index lists.

Opening reads headers only. `read` copies rows of one tensor into a fresh buffer, so memory is bounded by the request
and several threads may read at once. This module knows names, shapes and bytes, not the model.

Every file must lie in the folder under a plain name. Symbolic links are followed, because the hub's cache uses them. A
name in an index that leaves the folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, KeysView
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.location import locate_checkpoint
from qwonnx.export.checkpoint.safetensors_header import TensorEntry, read_header
from qwonnx.export.errors import CheckpointError, MissingTensorError, TensorFormatError
from qwonnx.runtime.artifact.manifest import SourceFacts
from qwonnx.runtime.artifact.strict_json import StrictJsonError, quoted, read_object

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

# An index of 370,000 tensors, four for each projection of each expert, has about 55 MB.
_MAX_INDEX_BYTES = 100_000_000
# No separators; a backslash is one on Windows. _is_plain_name also refuses names that do not print.
_PLAIN_NAME = re.compile(r"[^/\\]{1,200}\.safetensors")
_MAX_NAME_BYTES = 255  # the limit of file systems
_SHARD_NUMBER = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")

FLOAT_DTYPES = ("BF16", "F16", "F32")

# Types that can be read: of weights, and of codes in quantised checkpoints.
_TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
    "I32": torch.int32,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's facts from the header. dtype is "BF16", "F16", "F32", or another of safetensors' names."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """Identity of one state of a checkpoint's file, found without reading all of it."""

    name: str
    size: int
    changed_ns: int  # time of the last change, since 1970
    header_sha256: str  # of the tensors' header entries, in the order of their bytes


class Checkpoint:
    """An opened checkpoint; make one with `Checkpoint.open`. It holds no open file."""

    def __init__(self, tensors: dict[str, tuple[Path, TensorEntry]]) -> None:
        self._tensors = tensors

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Find the shards and read their headers.

        Raises:
            MissingTensorError: there is no safetensors file, a shard is missing, or a shard lacks what the index lists.
            TensorFormatError: a shard is truncated or malformed, or a tensor is stored twice.
            CheckpointError: the index is malformed, or names a file outside the folder; a file cannot be read.
        """
        index = _read_index(folder)
        names = _shards_without_index(folder) if index is None else sorted(set(index.values()))
        tensors: dict[str, tuple[Path, TensorEntry]] = {}
        for name in names:
            path = folder / name
            if not path.is_file():
                raise MissingTensorError(f"shard {name} is missing from {folder}: download the checkpoint again")
            for entry in _header(path):
                if entry.name in tensors:
                    other = tensors[entry.name][0].name
                    raise TensorFormatError(f"{quoted(entry.name)} is in {other} and in {name} of {folder}: remove one")
                tensors[entry.name] = path, entry
        if index is not None:
            _check_index(folder, index, tensors)
        return cls(tensors)

    @property
    def names(self) -> KeysView[str]:
        return self._tensors.keys()

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.num_bytes for _, entry in self._tensors.values())

    @property
    def files(self) -> tuple[CheckpointFile, ...]:
        """The files that hold tensors, as they are now, by name.

        Raises:
            CheckpointError: one cannot be found any more.
        """
        entries: dict[Path, list[TensorEntry]] = {}
        for path, entry in self._tensors.values():
            entries.setdefault(path, []).append(entry)
        return tuple(_file_facts(path, entries[path]) for path in sorted(entries))

    @property
    def dtype(self) -> str:
        """The type of most bytes, by torch's name ("bfloat16") if torch has one."""
        sizes: Counter[str] = Counter()
        for _, entry in self._tensors.values():
            sizes[entry.dtype] += entry.num_bytes
        most = max(sizes, key=lambda name: sizes[name], default="F32")
        return str(_TORCH_DTYPES[most]).removeprefix("torch.") if most in _TORCH_DTYPES else most.lower()

    def info(self, name: str) -> TensorInfo:
        """A tensor's facts from the header.

        Raises:
            MissingTensorError: the checkpoint has no tensor of this name.
        """
        entry = self._entry(name)[1]
        return TensorInfo(entry.name, entry.dtype, entry.shape, entry.num_bytes)

    def expect(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> int:
        """Bytes of a tensor, which must exist with this shape and one of these dtypes.

        Raises:
            MissingTensorError: the tensor does not exist.
            TensorFormatError: its shape or dtype is different.
        """
        if name not in self._tensors:
            raise MissingTensorError(
                f"the checkpoint has no {name} of shape {list(shape)}: it is incomplete, or its config.json"
                " belongs to another checkpoint; download both again"
            )
        entry = self._entry(name)[1]
        if entry.shape != shape:
            raise TensorFormatError(
                f"{name} has shape {list(entry.shape)} where config.json asks for {list(shape)}:"
                " they do not belong together; download both again"
            )
        if entry.dtype not in dtypes:
            raise TensorFormatError(
                f"{name} is stored as {entry.dtype}: export a checkpoint with {' or '.join(dtypes)}"
            )
        return entry.num_bytes

    def read(self, name: str, start_row: int = 0, num_rows: int | None = None) -> torch.Tensor:
        """Rows of the first axis, in the stored dtype, in a fresh buffer; all rows from start_row by default.

        A tensor without axes is read whole. Safe to call from several threads.

        Raises:
            MissingTensorError: the checkpoint has no tensor of this name.
            TensorFormatError: its dtype cannot be read, or its file has shrunk since it was opened.
            CheckpointError: the file cannot be read.
        """
        entry = self._entry(name)[1]
        available = entry.shape[0] if entry.shape else 1
        count = available - start_row if num_rows is None else num_rows
        assert 0 <= start_row <= start_row + count <= available, f"rows {start_row}+{count} of {name}"
        row_size = math.prod(entry.shape[1:])
        values = self.read_flat(name, start_row * row_size, count * row_size)
        return values.reshape((count, *entry.shape[1:]) if entry.shape else ())

    def read_flat(self, name: str, start: int, count: int) -> torch.Tensor:
        """`count` values from index `start`, in stored order, as one axis; raises as `read` does."""
        path, entry = self._entry(name)
        dtype = _torch_dtype(entry)
        assert 0 <= start <= start + count <= math.prod(entry.shape), f"values {start}+{count} of {name}"
        values = torch.empty(count, dtype=dtype)
        with _opened(path) as file:
            _read_into(file, path, values.view(torch.uint8).numpy().data, entry.offset + start * dtype.itemsize)
        return values

    def read_columns(self, name: str, start: int, count: int) -> torch.Tensor:
        """Columns of a matrix, in the stored dtype, [num_rows, count] in a fresh buffer; raises as `read` does.

        All columns take one read. Fewer columns take one read per row, so ask for as many as memory allows. The
        operating system is advised to prefetch the whole matrix, which it does in large pieces.
        """
        path, entry = self._entry(name)
        dtype = _torch_dtype(entry)
        num_rows, num_columns = entry.shape
        assert 0 <= start <= start + count <= num_columns, f"columns {start}+{count} of {name}"
        if count == num_columns:
            return self.read(name)
        values = torch.empty((num_rows, count), dtype=dtype)
        with _opened(path) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file, entry.offset, entry.num_bytes, os.POSIX_FADV_WILLNEED)
            rows = values.view(torch.uint8).numpy()
            for row in range(num_rows):
                offset = entry.offset + (row * num_columns + start) * dtype.itemsize
                _read_into(file, path, rows[row].data, offset)
        return values

    def _entry(self, name: str) -> tuple[Path, TensorEntry]:
        try:
            return self._tensors[name]
        except KeyError:
            raise MissingTensorError(
                f"the checkpoint has no tensor {name}: it is incomplete, or its config.json belongs to another"
                " checkpoint"
            ) from None


@dataclass(frozen=True, slots=True)
class ResolvedCheckpoint:
    """A checkpoint's folder, its entry in a manifest, its config.json and its tensors."""

    folder: Path
    source: SourceFacts
    config: ModelConfig
    tensors: Checkpoint


def resolve_checkpoint(name_or_path: str, revision: str | None) -> ResolvedCheckpoint:
    """Find a checkpoint, download it from the hub if need be, and open it.

    Raises:
        CheckpointError: it does not exist, cannot be downloaded or opened, or its model is not supported.
    """
    found = locate_checkpoint(name_or_path, revision)
    tensors = Checkpoint.open(found.folder)
    quantization = found.config.quantization
    dtype = tensors.dtype if quantization is None else quantization.name
    source = SourceFacts(checkpoint=found.name, revision=found.commit, dtype=dtype)
    return ResolvedCheckpoint(found.folder, source, found.config, tensors)


def _file_facts(path: Path, entries: list[TensorEntry]) -> CheckpointFile:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    header = [(entry.name, entry.dtype, entry.shape, entry.offset, entry.num_bytes) for entry in entries]
    digest = hashlib.sha256(json.dumps(header).encode())
    return CheckpointFile(path.name, status.st_size, status.st_mtime_ns, digest.hexdigest())


def _torch_dtype(entry: TensorEntry) -> torch.dtype:
    try:
        return _TORCH_DTYPES[entry.dtype]
    except KeyError:
        raise TensorFormatError(
            f"{entry.name} is stored as {entry.dtype}: export a BF16, F16 or F32 checkpoint"
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A file descriptor to read from; an OSError while it is open becomes a CheckpointError that names the file."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            yield file
        finally:
            os.close(file)
    except OSError as error:
        raise _unreadable(path, error) from error


def _read_into(file: int, path: Path, target: memoryview, offset: int) -> None:
    """Fill `target` from a file. One preadv may read less than asked, and at most 2 GiB."""
    while target.nbytes:
        num_read = os.preadv(file, [target], offset)
        if num_read == 0:
            raise TensorFormatError(f"{path} became shorter while it was read: download it again")
        target = target[num_read:]
        offset += num_read


def _header(path: Path) -> list[TensorEntry]:
    try:
        return read_header(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({error.strerror or error}): check the file and its permissions")


def _read_index(folder: Path) -> dict[str, str] | None:
    """Tensor name -> shard name; None without an index."""
    path = folder / INDEX_NAME
    if not path.is_file():
        return None
    try:
        weight_map = read_object(path, _MAX_INDEX_BYTES).get("weight_map")
    except StrictJsonError as error:
        raise CheckpointError(f"{path} is malformed ({error}): download it again") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map: download it again")
    for shard in weight_map.values():
        if not _is_plain_name(shard):
            raise CheckpointError(
                f"{path} names {quoted(shard)}, which is not a file of its folder: do not use this checkpoint"
            )
    return weight_map


def _is_plain_name(name: Any) -> bool:
    """Whether a value is a printable name of a safetensors file in the folder itself."""
    return (
        isinstance(name, str)
        and name.isprintable()  # first: it refuses names that cannot be encoded
        and _PLAIN_NAME.fullmatch(name) is not None
        and len(name.encode()) <= _MAX_NAME_BYTES
    )


def _shards_without_index(folder: Path) -> list[str]:
    """model.safetensors if it exists, else all safetensors files; a numbered series must be complete."""
    if (folder / SINGLE_NAME).is_file():
        return [SINGLE_NAME]
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise MissingTensorError(f"{folder} has no safetensors files: give a folder in Hugging Face layout")
    for name in names:
        if not _is_plain_name(name):
            raise CheckpointError(f"{folder} has a file {quoted(name)}, which is not a shard's name: rename it")
        numbered = _SHARD_NUMBER.search(name)
        if numbered and int(numbered[2]) != len(names):
            raise MissingTensorError(
                f"{folder} has {len(names)} of the {int(numbered[2])} shards that {name} counts: download the others"
            )
    return names


def _check_index(folder: Path, index: dict[str, str], tensors: dict[str, tuple[Path, TensorEntry]]) -> None:
    """The index and the shards must list the same tensors at the same places."""
    for name, shard in index.items():
        if name not in tensors or tensors[name][0].name != shard:
            raise MissingTensorError(
                f"{shard} in {folder} lacks {quoted(name)}, which the index lists: download it again"
            )
    for name, (path, _) in tensors.items():
        if name not in index:
            raise TensorFormatError(f"{path} has {quoted(name)}, which the index does not list: download both again")
