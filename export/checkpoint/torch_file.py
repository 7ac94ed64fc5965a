"""The header of a PyTorch file of tensors: the name, type, shape and byte range of each.

The format, since PyTorch 1.6: a ZIP archive without compression. NAME/data.pkl is a pickle that describes the tensors
(torch_pickle.py), NAME/data/KEY has the bytes of a storage. So each tensor is a range of bytes of the file, as in
safetensors, and nothing of the file is run. Tensors may share a storage.
"""

from __future__ import annotations

import errno
import math
import zipfile
from pathlib import Path
from typing import BinaryIO

from qwonnx.export.checkpoint.foreign_formats import refuse_pointer
from qwonnx.export.checkpoint.safetensors_header import ELEMENT_BITS, TensorEntry
from qwonnx.export.checkpoint.torch_pickle import DescribedTensor, PickleError, described_tensors
from qwonnx.export.errors import TensorFormatError
from qwonnx.runtime.artifact.strict_json import quoted

TORCH_SUFFIXES = (".bin", ".pt", ".pth")

_MAX_PICKLE_BYTES = 100_000_000
_LOCAL_HEADER_BYTES = 30
_BEGINS_ZIP, _BEGINS_PICKLE = b"PK\x03\x04", b"\x80"
_PICKLE = "/data.pkl"


def read_torch_file(path: Path) -> list[TensorEntry]:
    """The tensors of a PyTorch file, in the order of their bytes.

    Raises:
        TensorFormatError: the file is not an archive of plain tensors, is malformed, or has tensors that are views with
            gaps.
        CheckpointError: it is a pointer of Git LFS.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return torch_entries(file, str(path))


def torch_entries(file: BinaryIO, where: str) -> list[TensorEntry]:
    """The same of an opened file, which `where` names in errors."""
    begin = file.read(64)
    refuse_pointer(where, begin)
    if not begin.startswith(_BEGINS_ZIP):
        if begin.startswith(_BEGINS_PICKLE):
            raise TensorFormatError(
                f"{where} is of PyTorch's format before version 1.6: load it with transformers and write it with"
                " save_pretrained, then export that folder"
            )
        raise _malformed(where, "it is not a ZIP archive")
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            return _entries(where, file, archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError, UnicodeError) as error:
        raise _malformed(where, f"its archive is damaged: {str(error)[:80]}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise _malformed(where, "its archive has records before the file") from error


def _entries(where: str, file: BinaryIO, archive: zipfile.ZipFile) -> list[TensorEntry]:
    records = {record.filename: record for record in archive.infolist()}
    pickles = [name for name in records if name.endswith(_PICKLE) and name.count("/") == 1]
    if len(pickles) != 1 or len(records) != len(archive.infolist()):
        raise _malformed(where, "it has no data.pkl, or a record twice")
    root = pickles[0].removesuffix(_PICKLE)
    if records[pickles[0]].file_size > _MAX_PICKLE_BYTES:
        raise _malformed(where, f"a data.pkl of {records[pickles[0]].file_size} bytes")
    order = f"{root}/byteorder"
    if order in records and (records[order].file_size > 16 or archive.read(order) != b"little"):
        raise _malformed(where, "its values are not in little-endian order")
    if records[pickles[0]].compress_type != zipfile.ZIP_STORED:
        raise _malformed(where, "its records are compressed")
    try:
        described = described_tensors(archive.read(pickles[0]))
    except PickleError as error:
        raise TensorFormatError(
            f"{where} is not a file of tensors alone ({error}): load it where you trust it and write it with"
            " save_pretrained, then export that folder"
        ) from error
    entries = []
    for name, tensor in described.items():
        if not isinstance(tensor, DescribedTensor):
            raise TensorFormatError(
                f"{where}: {quoted(name)} is a {type(tensor).__name__} and not a tensor, as in a trainer's own"
                " checkpoint: write the model with save_pretrained, then export that folder"
            )
        record = records.get(f"{root}/data/{tensor.storage}")
        if record is None:
            raise _malformed(where, f"it has no bytes of {quoted(name)}")
        entries.append(_entry(where, file, name, tensor, record))
    return sorted(entries, key=lambda entry: (entry.offset, entry.num_bytes))


def _entry(where: str, file: BinaryIO, name: str, tensor: DescribedTensor, record: zipfile.ZipInfo) -> TensorEntry:
    if not tensor.is_contiguous:
        raise TensorFormatError(
            f"{where}: {quoted(name)} is a view whose rows do not follow each other: write the model with"
            " save_pretrained, then export that folder"
        )
    if tensor.dtype not in ELEMENT_BITS or record.compress_type != zipfile.ZIP_STORED:
        raise _malformed(where, f"{quoted(name)} is compressed, or of an unknown type")
    item_bytes = ELEMENT_BITS[tensor.dtype] // 8
    num_bytes = math.prod(tensor.shape) * item_bytes
    start = _content_offset(where, file, record) + tensor.offset * item_bytes
    if (tensor.offset * item_bytes + num_bytes) > record.file_size:
        raise _malformed(where, f"{quoted(name)} of shape {list(tensor.shape)} ends after its storage")
    return TensorEntry(name, tensor.dtype, tensor.shape, start, num_bytes)


def _content_offset(where: str, file: BinaryIO, record: zipfile.ZipInfo) -> int:
    """Where a record's content begins in the file: after its local header, which ends with two texts of any length."""
    file.seek(record.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(_BEGINS_ZIP):
        raise _malformed(where, f"the record {quoted(record.filename)} is not where the archive says")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = record.header_offset + _LOCAL_HEADER_BYTES + lengths
    if start + record.file_size > file.seek(0, 2):
        raise _malformed(where, f"the record {quoted(record.filename)} ends after the file")
    return start


def _malformed(where: str, reason: str) -> TensorFormatError:
    return TensorFormatError(
        f"{where} is not a sound PyTorch file ({reason}): it was damaged or is of another kind; restore it"
    )
