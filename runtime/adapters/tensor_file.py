"""The tensors of a safetensors file, for adapters that a running model loads.

The file is untrusted: every number of its header is checked before it is used, and a file that shrinks while it is read
is an error. Nothing is mapped, so that it cannot be a signal either.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.artifact.strict_json import StrictJsonError, parse_object, quoted
from qwonnx.runtime.errors import AdapterError

Floats = npt.NDArray[np.float32]

_MAX_HEADER_BYTES = 16 << 20  # an adapter of a thousand layers has less
_MAX_SIZE = 1 << 28  # of an axis
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A matrix of floats in a file. dtype is the format's name, offset counts from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, int]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


class TensorFile:
    """A file with matrices of floats.

    Raises:
        AdapterError: it cannot be read, is malformed, or has a tensor that is not a matrix of floats.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._state = _state(file.fileno())
                length = int.from_bytes(file.read(8), "little")
                if not 2 <= length <= _MAX_HEADER_BYTES:
                    raise self._malformed(f"a header of {length} bytes")
                header = parse_object(file.read(length))
        except OSError as error:
            raise AdapterError(f"{path} cannot be read ({error.strerror}): restore it") from error
        except StrictJsonError as error:
            raise self._malformed(f"its header is {error}") from error
        header.pop("__metadata__", None)
        self.tensors = [self._tensor(name, entry, 8 + length) for name, entry in header.items()]

    def read(self, tensor: Tensor) -> Floats:
        """A tensor as float32 of its shape.

        Raises:
            AdapterError: the file has changed since it was opened, or has numbers that are not finite.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.offset)
                content = file.read(tensor.num_bytes)
                has_changed = _state(file.fileno()) != self._state
        except OSError as error:
            raise AdapterError(f"{self.path} cannot be read ({error.strerror}): restore it") from error
        if has_changed or len(content) != tensor.num_bytes:
            raise AdapterError(f"{self.path} has changed since it was loaded: load the adapter again")
        floats = _floats(content, tensor.dtype).reshape(tensor.shape)
        if not np.isfinite(floats).all():
            raise AdapterError(f"{self.path}: {quoted(tensor.name)} has numbers that are not finite: train it again")
        return floats

    def _tensor(self, name: str, entry: Any, start: int) -> Tensor:
        fields = entry if isinstance(entry, dict) else {}
        dtype, shape, place = (fields.get(each) for each in ("dtype", "shape", "data_offsets"))
        if dtype not in _ITEM_BYTES:
            raise AdapterError(
                f"{self.path}: {quoted(name)} is of type {quoted(dtype, 20)}, not of floats: save it as BF16"
            )
        sizes, ends = _two_numbers(shape, _MAX_SIZE), _two_numbers(place, 1 << 62)
        if sizes is None or ends is None:
            raise self._malformed(f"{quoted(name)} is not a matrix with a place")
        tensor = Tensor(name, dtype, sizes, start + ends[0])
        if ends[1] - ends[0] != tensor.num_bytes or tensor.offset + tensor.num_bytes > self._state[0]:
            raise self._malformed(f"{quoted(name)} does not fit its place")
        return tensor

    def _malformed(self, reason: str) -> AdapterError:
        return AdapterError(f"{self.path} is not a whole safetensors file ({reason}): restore it")


def _two_numbers(value: Any, at_most: int) -> tuple[int, int] | None:
    """The numbers of a list of two that are not negative; None: it is something else."""
    is_pair = isinstance(value, list) and len(value) == 2
    if not is_pair or not all(type(each) is int and 0 <= each <= at_most for each in value):
        return None
    return value[0], value[1]


def _state(descriptor: int) -> tuple[int, int, int]:
    """Size, time of the last change, and number of an open file."""
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns, found.st_ino


def _floats(content: bytes, dtype: str) -> Floats:
    if dtype == "F32":
        return np.frombuffer(content, "<f4").astype(np.float32)
    if dtype == "F16":
        return np.frombuffer(content, "<f2").astype(np.float32)
    return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32
