"""The header of a GGUF file: its metadata, and the name, type, shape and byte range of each tensor.

The format, little-endian: "GGUF", the version, the numbers of tensors and of metadata entries; the entries, each a key,
a type and a value; the tensors' names, shapes, types and offsets; then the tensors' bytes, each at a multiple of the
alignment. A string has its length before it, an array its type and length. Version 3 is as version 2.

Files are untrusted: every number is checked against the file before it is used. Arrays are skipped, and read when they
are asked for, because those of a tokenizer have half a million strings.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qwonnx.export.checkpoint.foreign_formats import refuse_pointer
from qwonnx.export.checkpoint.gguf.block_types import BLOCK_TYPES, UNREAD_TYPES, BlockType
from qwonnx.export.errors import CheckpointError, TensorFormatError
from qwonnx.runtime.artifact.strict_json import quoted

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
# Far above any real file: the largest model has some thousand tensors, and an entry for each field of its config.
_MAX_ENTRIES = 1 << 14
_MAX_TENSORS = 1 << 16
_MAX_NAME_BYTES = 255
_MAX_STRING_BYTES = 4 << 20  # a chat template has some kilobytes
_MAX_ARRAY_LENGTH = 1 << 21  # a vocabulary has 2^18 tokens, and fewer merges
_MAX_ARRAY_BYTES = 256 << 20
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 16
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32

# By the format's number of a type: how struct reads a scalar.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9


@dataclass(frozen=True, slots=True)
class ArrayPlace:
    """An array that is not read: the format's number of its items' type, their number, and where they begin."""

    item_type: int
    length: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor. shape is in torch's order, the last axis is contiguous; offset counts from the file's start."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    path: Path

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.num_bytes // self.num_rows


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file's metadata, with arrays by their places, and its tensors by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def array(self, key: str) -> list[Any] | None:
        """The items of an array; None if the file has no array of this key.

        Raises:
            TensorFormatError: a string is not UTF-8, or the file has changed.
            CheckpointError: the file cannot be read.
        """
        place = self.metadata.get(key)
        if not isinstance(place, ArrayPlace):
            return None
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(place.offset)
                reader = _Reader(file, size, self.path)
                if place.item_type == _STRING:
                    return [reader.string(_MAX_STRING_BYTES) for _ in range(place.length)]
                form = _SCALARS[place.item_type]
                content = reader.take(place.length * struct.calcsize(form))
        except OSError as error:
            raise _unreadable(self.path, error) from error
        items = [item for (item,) in struct.iter_unpack(form, content)]
        return [bool(item) for item in items] if place.item_type == _BOOL else items


def read_gguf(path: Path) -> GgufFile:
    """Read a file's header.

    Raises:
        TensorFormatError: the file is truncated or malformed, or has tensors of a type that is not read.
        CheckpointError: it is a pointer of Git LFS, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            reader = _Reader(file, size, path)
            begin = file.read(len(_MAGIC))
            if begin != _MAGIC:
                refuse_pointer(path, begin + file.read(64))
                raise reader.malformed("it does not begin with GGUF")
            version = reader.scalar("<I")
            if version not in _VERSIONS:
                swapped = version & 0xFFFF == 0
                raise TensorFormatError(
                    f"{path} is a GGUF file {'in big-endian order' if swapped else f'of version {version}'}, which is"
                    " not supported: convert the model with a newer llama.cpp, on a little-endian machine"
                )
            num_tensors, num_entries = reader.scalar("<Q"), reader.scalar("<Q")
            if num_tensors > _MAX_TENSORS or num_entries > _MAX_ENTRIES:
                raise reader.malformed(f"it claims {num_tensors} tensors and {num_entries} entries of metadata")
            metadata: dict[str, Any] = {}
            for _ in range(num_entries):
                key = reader.string(_MAX_NAME_BYTES)
                if key in metadata:
                    raise reader.malformed(f"it has {quoted(key)} twice")
                metadata[key] = reader.value(reader.scalar("<I"), key)
            described = [reader.tensor() for _ in range(num_tensors)]
            return GgufFile(path, metadata, _placed(reader, described, metadata, file.tell()))
    except OSError as error:
        raise _unreadable(path, error) from error


@dataclass(frozen=True, slots=True)
class _Described:
    """A tensor as the header has it; offset counts from the first tensor's place."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads numbers and strings, never past the end of the file."""

    file: BinaryIO
    size: int
    path: Path

    def take(self, count: int) -> bytes:
        left = self.size - self.file.tell()
        content = self.file.read(count) if 0 <= count <= left else b""
        if len(content) < count:
            raise TensorFormatError(
                f"{self.path} is truncated (its header does not fit into its {self.size} bytes): a copy was"
                " interrupted; restore it"
            )
        return content

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def string(self, max_bytes: int) -> str:
        length = self.scalar("<Q")
        if length > max_bytes:
            raise self.malformed(f"it has a string of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError as error:
            raise self.malformed("it has a string that is not UTF-8") from error

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.string(_MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _SCALARS:
            raise self.malformed(f"{quoted(key)} has the unknown type {kind}")
        value = self.scalar(_SCALARS[kind])
        if kind == _BOOL:
            if value > 1:
                raise self.malformed(f"{quoted(key)} is neither true nor false")
            return bool(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise self.malformed(f"{quoted(key)} is not a number")
        return value

    def array(self, key: str) -> ArrayPlace:
        item_type, length = self.scalar("<I"), self.scalar("<Q")
        if length > _MAX_ARRAY_LENGTH or (item_type != _STRING and item_type not in _SCALARS):
            raise self.malformed(f"{quoted(key)} is an array of {length} items of type {item_type}")
        offset = self.file.tell()
        if item_type != _STRING:
            self.take(length * struct.calcsize(_SCALARS[item_type]))
        else:
            for _ in range(length):
                item_bytes = self.scalar("<Q")
                if item_bytes > _MAX_STRING_BYTES or self.file.tell() - offset > _MAX_ARRAY_BYTES:
                    raise self.malformed(f"{quoted(key)} has an item of {item_bytes} bytes")
                self.take(item_bytes)
        return ArrayPlace(item_type, length, offset)

    def tensor(self) -> _Described:
        name = self.string(_MAX_NAME_BYTES)
        num_dimensions = self.scalar("<I")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise self.malformed(f"tensor {quoted(name)} has {num_dimensions} dimensions")
        shape = tuple(reversed([self.scalar("<Q") for _ in range(num_dimensions)]))
        if not all(0 < size < 1 << 40 for size in shape):
            raise self.malformed(f"tensor {quoted(name)} has the shape {list(shape)}")
        kind, offset = self.scalar("<I"), self.scalar("<Q")
        if kind not in BLOCK_TYPES:
            known = UNREAD_TYPES.get(kind, f"number {kind}")
            raise TensorFormatError(
                f"{self.path}: {quoted(name)} is of the type {known}, which is not supported: use a file with"
                f" {', '.join(block.name for block in BLOCK_TYPES.values())}, or the checkpoint that it was made from"
            )
        block = BLOCK_TYPES[kind]
        num_blocks, rest = divmod(shape[-1], block.num_values)
        if rest:
            raise self.malformed(
                f"tensor {quoted(name)} has rows of {shape[-1]} values in blocks of {block.num_values}"
            )
        # Python's integers do not overflow, so this product is exact.
        return _Described(name, block, shape, offset, math.prod(shape[:-1]) * num_blocks * block.num_bytes)

    def malformed(self, reason: str) -> TensorFormatError:
        return TensorFormatError(
            f"{self.path} is not a sound GGUF file ({reason}): it was damaged or is of another kind; restore it"
        )


def _placed(
    reader: _Reader, described: list[_Described], metadata: dict[str, Any], header_end: int
) -> dict[str, GgufTensor]:
    """The tensors at their places in the file: in their order, each after the other, up to the alignment."""
    alignment = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise reader.malformed(f"{_ALIGNMENT_KEY} is {quoted(alignment)}")
    start = _aligned(header_end, alignment)
    tensors: dict[str, GgufTensor] = {}
    end = 0
    for one in described:
        if one.name in tensors:
            raise reader.malformed(f"it has the tensor {quoted(one.name)} twice")
        if one.offset != _aligned(end, alignment):
            raise reader.malformed(f"tensor {quoted(one.name)} does not follow the tensor before it")
        end = one.offset + one.num_bytes
        tensors[one.name] = GgufTensor(one.name, one.type, one.shape, start + one.offset, one.num_bytes, reader.path)
    if described and start + end > reader.size:
        raise TensorFormatError(
            f"{reader.path} is truncated (it has {reader.size} bytes and its header says {start + end}): a copy was"
            " interrupted; restore it"
        )
    return tensors


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path} cannot be read ({error.strerror or error}): check the file and its permissions")
