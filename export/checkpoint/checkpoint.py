"""A checkpoint's tensors by name, from the files that chosen_files.py chooses, or from a model in GGUF.

Opening reads headers only. `read` copies rows of one tensor into a fresh buffer, so memory is bounded by the request
and several threads may read at once. Names are the published ones, whatever wrapper saved them (saved_names.py). This
module knows names, shapes and bytes, not the model.

Every file must lie in the folder under a plain name. Symbolic links are followed, because the hub's cache uses them. A
name in an index that leaves the folder is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, KeysView, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qwonnx.export.checkpoint.chosen_files import choose_files
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.checkpoint.gguf.files import is_gguf
from qwonnx.export.checkpoint.gguf.model import open_gguf
from qwonnx.export.checkpoint.gguf.published_tensors import DECODING_BYTES, PublishedTensor, published_tensors
from qwonnx.export.checkpoint.remote.remote_folder import RemoteFolder
from qwonnx.export.checkpoint.safetensors_header import TensorEntry, header_entries
from qwonnx.export.checkpoint.saved_names import published_names
from qwonnx.export.checkpoint.stored_file import ByteRange, LocalFile, StoredFile, unreadable
from qwonnx.export.checkpoint.torch_file import TORCH_SUFFIXES, torch_entries
from qwonnx.export.errors import MissingTensorError, TensorFormatError
from qwonnx.runtime.artifact.strict_json import quoted

if TYPE_CHECKING:  # only to read values: headers are checked without it
    import torch

FLOAT_DTYPES = ("BF16", "F16", "F32")

# Types that can be read, by torch's names: of weights, and of codes in quantised checkpoints.
_TORCH_DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F8_E4M3": "float8_e4m3fn",
    "I32": "int32",
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
    version: int | str  # differs when the content does: see FileState
    header_sha256: str  # of the tensors' header entries, in the order of their bytes


class Checkpoint:
    """An opened checkpoint; make one with `Checkpoint.open`. It holds no open file."""

    def __init__(
        self,
        tensors: dict[str, tuple[StoredFile, TensorEntry]],
        notes: tuple[str, ...] = (),
        *,
        is_renamed: bool = False,
        has_values: bool = True,
        published: Mapping[str, PublishedTensor] | None = None,
    ) -> None:
        self._tensors = tensors
        self._published = dict(published or {})  # of a model in GGUF; then there are no others
        self.notes = notes  # for display: files that are not read, prefixes that are dropped
        self.has_values = has_values  # they may be read; else only headers are
        self.is_renamed = is_renamed  # some tensors were saved under another name than the published one

    @classmethod
    def open(
        cls,
        folder: Path,
        weights_file: str | None = None,
        remote: RemoteFolder | None = None,
        *,
        has_values: bool = True,
    ) -> Checkpoint:
        """Choose the files and read their headers.

        Args:
            folder: the checkpoint's, or the first file of a model in GGUF.
            weights_file: see choose_files.
            remote: has the files with tensors, of which `folder` has only the names.
            has_values: values may be read; else only headers are.

        Raises:
            MissingTensorError: there is no safetensors file, a shard is missing, or a shard lacks what the index lists.
            TensorFormatError: a shard is truncated or malformed, or a tensor is stored twice.
            CheckpointError: see choose_files; or a file cannot be read.
        """
        if is_gguf(folder):
            model = open_gguf(folder)
            published = published_tensors(model.tensors, load_config(folder))
            return cls({}, model.notes, published=published, is_renamed=True)
        chosen = choose_files(folder, weights_file)
        files: Sequence[StoredFile]
        files = [LocalFile(folder / name) for name in chosen.names] if remote is None else remote.files(chosen.names)
        tensors: dict[str, tuple[StoredFile, TensorEntry]] = {}
        for file in files:
            entries = _header(file)
            file.lay_out(ByteRange(entry.offset, entry.num_bytes) for entry in entries)
            for entry in entries:
                if entry.name in tensors:
                    other = tensors[entry.name][0].name
                    raise TensorFormatError(
                        f"{quoted(entry.name)} is in {other} and in {file.name} of {folder}: remove one"
                    )
                tensors[entry.name] = file, entry
        if chosen.index is not None:
            _check_index(folder, chosen.index, tensors)
        renamed = published_names(tensors)
        by_name = {name: tensors[saved] for name, saved in renamed.saved.items()}
        is_renamed = by_name.keys() != tensors.keys()
        return cls(by_name, (*chosen.notes, *renamed.notes), is_renamed=is_renamed, has_values=has_values)

    @property
    def names(self) -> KeysView[str]:
        return self._published.keys() or self._tensors.keys()

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.num_bytes for _, entry in self._entries())

    @property
    def files(self) -> tuple[CheckpointFile, ...]:
        """The files that hold tensors, as they are now, by name.

        Raises:
            CheckpointError: one cannot be found any more.
        """
        entries: dict[StoredFile, list[TensorEntry]] = {}
        for path, entry in self._entries():
            entries.setdefault(path, []).append(entry)
        return tuple(_file_facts(file, entries[file]) for file in sorted(entries, key=lambda file: file.name))

    @property
    def stored_files(self) -> tuple[StoredFile, ...]:
        """The files that hold tensors, by name."""
        return tuple(sorted({file for file, _ in self._entries()}, key=lambda file: file.name))

    @property
    def dtype(self) -> str:
        """The type of most bytes, by torch's name ("bfloat16") if torch has one."""
        sizes: Counter[str] = Counter()
        for _, entry in self._entries():
            sizes[entry.dtype] += entry.num_bytes
        most = max(sizes, key=lambda name: sizes[name], default="F32")
        return _TORCH_DTYPES.get(most, most.lower())

    def info(self, name: str) -> TensorInfo:
        """A tensor's facts from the header.

        Raises:
            MissingTensorError: the checkpoint has no tensor of this name.
        """
        entry = self._facts(name)
        return TensorInfo(name, entry.dtype, entry.shape, entry.num_bytes)

    def expect(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> int:
        """Bytes of a tensor, which must exist with this shape and one of these dtypes.

        Raises:
            MissingTensorError: the tensor does not exist.
            TensorFormatError: its shape or dtype is different.
        """
        if name not in self.names:
            raise MissingTensorError(
                f"the checkpoint has no {name} of shape {list(shape)}: a save or a copy is incomplete, or its"
                " config.json belongs to another model"
            )
        entry = self._facts(name)
        if 0 in entry.shape:
            raise TensorFormatError(
                f"{name} is empty, as DeepSpeed ZeRO 3 saves a part of a model: gather the model first"
                " (zero_to_fp32.py, or stage3_gather_16bit_weights_on_model_save)"
            )
        if entry.shape != shape:
            raise TensorFormatError(
                f"{name} has shape {list(entry.shape)} where config.json asks for {list(shape)}: use the config.json"
                " that was saved with the weights"
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
        entry = self._facts(name)
        available = entry.shape[0] if entry.shape else 1
        count = available - start_row if num_rows is None else num_rows
        assert 0 <= start_row <= start_row + count <= available, f"rows {start_row}+{count} of {name}"
        row_size = math.prod(entry.shape[1:])
        values = self.read_flat(name, start_row * row_size, count * row_size)
        return values.reshape((count, *entry.shape[1:]) if entry.shape else ())

    def read_flat(self, name: str, start: int, count: int) -> torch.Tensor:
        """`count` values from index `start`, in stored order, as one axis; raises as `read` does."""
        import torch

        if (published := self._published.get(name)) is not None:
            if published.dtype == "F32":
                return torch.from_numpy(published.floats(start, count, _read_range))
            dtype = getattr(torch, _TORCH_DTYPES[published.dtype])
            return torch.from_numpy(published.halves(start, count, _read_range).view(np.int16)).view(dtype)
        file, entry = self._entry(name)
        dtype = _torch_dtype(entry)
        assert 0 <= start <= start + count <= math.prod(entry.shape), f"values {start}+{count} of {name}"
        values = torch.empty(count, dtype=dtype)
        with file.opened() as read_into:
            read_into(values.view(torch.uint8).numpy().data, entry.offset + start * dtype.itemsize)
        return values

    def read_floats(self, name: str, start: int, count: int) -> npt.NDArray[np.float32]:
        """`count` values of a float tensor from index `start`, as float32, without torch; raises as `read` does."""
        if (published := self._published.get(name)) is not None:
            return published.floats(start, count, _read_range)
        size = self.info(name).num_bytes // math.prod(self.info(name).shape)
        stored = self.read_bytes(name, start * size, count * size)
        match self.info(name).dtype:
            case "BF16":
                return (stored.view("<u2").astype(np.uint32) << 16).view(np.float32)
            case "F16":
                return stored.view("<f2").astype(np.float32)
            case _:
                return stored.view("<f4")

    def reading_bytes(self, name: str) -> tuple[int, int]:
        """Memory that a read takes beside the stored bytes and its caller's floats: of any size, and for each value."""
        published = self._published.get(name)
        if published is None or not published.is_decoded:
            return 0, 0
        return DECODING_BYTES, 4

    def read_bytes(self, name: str, start: int, count: int) -> npt.NDArray[np.uint8]:
        """`count` bytes of a tensor from byte `start`, as stored; raises as `read` does."""
        file, entry = self._entry(name)
        assert 0 <= start <= start + count <= entry.num_bytes, f"bytes {start}+{count} of {name}"
        content = np.empty(count, np.uint8)
        with file.opened() as read_into:
            read_into(content.data, entry.offset + start)
        return content

    def read_columns(self, name: str, start: int, count: int) -> torch.Tensor:
        """Columns of a matrix, in the stored dtype, [num_rows, count] in a fresh buffer; raises as `read` does.

        All columns take one read. Fewer columns take one read per row, so ask for as many as memory allows. The
        operating system is advised to prefetch the whole matrix, which it does in large pieces.
        """
        import torch

        file, entry = self._entry(name)
        dtype = _torch_dtype(entry)
        num_rows, num_columns = entry.shape
        assert 0 <= start <= start + count <= num_columns, f"columns {start}+{count} of {name}"
        if count == num_columns:
            return self.read(name)
        values = torch.empty((num_rows, count), dtype=dtype)
        with file.opened(ByteRange(entry.offset, entry.num_bytes)) as read_into:
            rows = values.view(torch.uint8).numpy()
            for row in range(num_rows):
                offset = entry.offset + (row * num_columns + start) * dtype.itemsize
                read_into(rows[row].data, offset)
        return values

    def _entry(self, name: str) -> tuple[StoredFile, TensorEntry]:
        try:
            return self._tensors[name]
        except KeyError:
            raise MissingTensorError(
                f"the checkpoint has no tensor {name}: it is incomplete, or its config.json belongs to another"
                " checkpoint"
            ) from None

    def _facts(self, name: str) -> TensorEntry | PublishedTensor:
        return self._published.get(name) or self._entry(name)[1]

    def _entries(self) -> Iterable[tuple[StoredFile, TensorEntry]]:
        """The stored tensors and their files."""
        if not self._published:
            return self._tensors.values()
        stored = {name: tensor for one in self._published.values() for name, tensor in one.stored.items()}
        return [
            (LocalFile(tensor.path), TensorEntry(name, tensor.type.name, tensor.shape, tensor.offset, tensor.num_bytes))
            for name, tensor in stored.items()
        ]


def _file_facts(file: StoredFile, entries: list[TensorEntry]) -> CheckpointFile:
    state = file.state()
    header = [(entry.name, entry.dtype, entry.shape, entry.offset, entry.num_bytes) for entry in entries]
    digest = hashlib.sha256(json.dumps(header).encode())
    return CheckpointFile(file.name, state.size, state.version, digest.hexdigest())


def _header(file: StoredFile) -> list[TensorEntry]:
    try:
        with file.stream() as stream:
            read = torch_entries if file.name.endswith(TORCH_SUFFIXES) else header_entries
            return read(stream, str(file))
    except OSError as error:
        raise unreadable(file, error) from error


def _read_range(path: Path, offset: int, count: int) -> npt.NDArray[np.uint8]:
    content = np.empty(count, np.uint8)
    with LocalFile(path).opened() as read_into:
        read_into(content.data, offset)
    return content


def _torch_dtype(entry: TensorEntry) -> torch.dtype:
    import torch

    try:
        dtype: torch.dtype = getattr(torch, _TORCH_DTYPES[entry.dtype])
        return dtype
    except KeyError:
        raise TensorFormatError(
            f"{entry.name} is stored as {entry.dtype}: export a BF16, F16 or F32 checkpoint"
        ) from None


def _check_index(folder: Path, index: Mapping[str, str], tensors: dict[str, tuple[StoredFile, TensorEntry]]) -> None:
    """The index and the shards must list the same tensors at the same places."""
    for name, shard in index.items():
        if name not in tensors or tensors[name][0].name != shard:
            raise MissingTensorError(
                f"{shard} in {folder} lacks {quoted(name)}, which the index lists: one of the two is of another save;"
                " remove the index if it is older, or restore the file"
            )
    for name, (file, _) in tensors.items():
        if name not in index:
            raise TensorFormatError(
                f"{file} has {quoted(name)}, which the index does not list: one of the two is of another"
                " save; remove the index if it is older, or restore the file"
            )
