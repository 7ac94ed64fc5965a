"""The header of a safetensors file: the name, type, shape and byte range of each tensor.

The format: eight bytes, little-endian, with the header's length; the header, a JSON object; then the tensors' bytes,
back to back. Files are untrusted, so every number is checked against the file before it is used. After `read_header`
each tensor's byte range lies in the file, has the size that its shape needs, and overlaps no other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from qwonnx.export.checkpoint.foreign_formats import refuse_pointer
from qwonnx.export.errors import TensorFormatError
from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, quoted

# The format's own limit. A shard of 512 experts a layer, one tensor each, needs about 20 MB.
MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 8

# Bits per element for every type of the format: an error must name a type that is not supported, not call it malformed.
ELEMENT_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file. dtype is the format's name ("BF16", "F32", ...), offset counts from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_header(path: Path) -> list[TensorEntry]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        TensorFormatError: the file is truncated, its header is malformed or does not fit the file, or MLX wrote it.
        CheckpointError: it is a pointer of Git LFS.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return header_entries(file, str(path))


def header_entries(file: BinaryIO, where: str) -> list[TensorEntry]:
    """The same of an opened file, which `where` names in errors."""
    file_bytes = file.seek(0, 2)
    file.seek(0)
    prefix = file.read(8)
    if prefix == b"version ":
        refuse_pointer(where, prefix + file.read(64))
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or 8 + length > file_bytes:
        raise _truncated(where, f"its header does not fit into its {file_bytes} bytes")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise _malformed(where, f"a header of {length} bytes")
    content = file.read(length)
    try:
        header = parse_object(content)
    except StrictJsonError as error:
        raise _malformed(where, f"header: {error}") from error
    metadata = header.pop("__metadata__", None)
    if isinstance(metadata, dict) and metadata.get("format") == "mlx":
        # MLX stores 1 + w for norms that others store as w, and nothing in a tensor shows it.
        raise TensorFormatError(
            f"{where} is a conversion for MLX (format: mlx), which shifts norms and turns convolutions: export the"
            " checkpoint that it was made from"
        )
    data_start = 8 + length
    entries = sorted(
        (_entry(where, name, value, data_start) for name, value in header.items()),
        key=lambda entry: (entry.offset, entry.num_bytes),
    )
    _check_layout(where, entries, data_start, file_bytes)
    return entries


def _entry(where: str, name: str, value: Any, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(where, f"tensor {quoted(name)} has other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_BITS:
        raise _malformed(where, f"tensor {quoted(name)} has the unknown dtype {quoted(dtype)}")
    if not _is_size_list(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _malformed(where, f"tensor {quoted(name)} has the shape {quoted(shape)}")
    if not _is_size_list(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _malformed(where, f"tensor {quoted(name)} has the data_offsets {quoted(offsets)}")
    num_bytes = offsets[1] - offsets[0]
    # Python's integers do not overflow, so this product is exact.
    if math.prod(shape) * ELEMENT_BITS[dtype] != num_bytes * 8:
        raise _malformed(where, f"tensor {quoted(name)} of shape {shape} and dtype {dtype} has {num_bytes} bytes")
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], num_bytes)


def _is_size_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 62 for size in value)


def _check_layout(where: str, entries: list[TensorEntry], data_start: int, file_bytes: int) -> None:
    """Tensors must follow each other without gap or overlap, to the end of the file."""
    end = data_start
    for entry in entries:
        if entry.offset != end:
            kind = "overlaps" if entry.offset < end else "leaves a gap after"
            raise _malformed(where, f"tensor {quoted(entry.name)} {kind} the tensor before it")
        end += entry.num_bytes
    if end > file_bytes:
        raise _truncated(where, f"it has {file_bytes} bytes and its header says {end}")
    if end < file_bytes:
        raise _malformed(where, f"{file_bytes - end} bytes follow the last tensor")


def _truncated(where: str, reason: str) -> TensorFormatError:
    return TensorFormatError(f"{where} is truncated ({reason}): a copy or a save was interrupted; restore it")


def _malformed(where: str, reason: str) -> TensorFormatError:
    return TensorFormatError(
        f"{where} is not a sound safetensors file ({reason}): it was damaged or is of another kind; restore it"
    )
