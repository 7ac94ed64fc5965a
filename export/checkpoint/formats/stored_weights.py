"""A checkpoint's weights by their logical names, for every format of tensors that can store them.

    format        logical name     stored as
    float         X                X
    fp8           X.weight         X.weight, X.weight_scale_inv                  float8.py
    gptq          X.weight         X.qweight, X.qzeros, X.scales, X.g_idx        gptq.py

In a quantised checkpoint many tensors are not quantised; companion tensors mark those that are. This module knows names
and formats, not the purpose of a weight.
"""

from __future__ import annotations

import math
from collections.abc import KeysView
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from qwonnx.export.checkpoint.checkpoint import FLOAT_DTYPES, Checkpoint, TensorInfo
from qwonnx.export.checkpoint.formats.float8 import SCALE_SUFFIX, Float8Weight
from qwonnx.export.checkpoint.formats.gptq import CODES_SUFFIX, SUFFIXES, GptqWeight, gptq_shape
from qwonnx.export.checkpoint.formats.source_quantization import Fp8Format, GptqFormat, SourceQuantization, StoredCodes
from qwonnx.export.errors import TensorFormatError

if TYPE_CHECKING:
    import torch

_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """A tensor of floats as a matrix: all axes but the last are flattened."""

    codes: ClassVar[None] = None
    reading_bytes: ClassVar[int] = 0
    reading_bytes_per_value: ClassVar[int] = 0
    name: str
    num_rows: int
    num_columns: int
    num_bytes: int
    _checkpoint: Checkpoint

    @property
    def is_bfloat16(self) -> bool:
        return self._checkpoint.info(self.name).dtype == "BF16"

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows [count, num_columns] in the stored dtype."""
        values = self._checkpoint.read_flat(self.name, start * self.num_columns, count * self.num_columns)
        return values.view(count, self.num_columns)

    def read_floats(self, start: int, count: int) -> npt.NDArray[np.float32]:
        """Rows as float32 [count, num_columns], without torch."""
        row_bytes = self._checkpoint.info(self.name).num_bytes // self.num_rows
        stored = self._checkpoint.read_bytes(self.name, start * row_bytes, count * row_bytes)
        match self._checkpoint.info(self.name).dtype:
            case "BF16":
                values = (stored.view("<u2").astype(np.uint32) << 16).view(np.float32)
            case "F16":
                values = stored.view("<f2").astype(np.float32)
            case _:
                values = stored.view("<f4")
        return values.reshape(count, self.num_columns)

    def read_part(self, row: int, first_column: int, num_columns: int) -> torch.Tensor:
        """Some columns [1, num_columns] of one row; only these are read."""
        return self._checkpoint.read_flat(self.name, row * self.num_columns + first_column, num_columns).view(1, -1)


class StoredWeight(Protocol):
    """A weight as a matrix. Reads are thread-safe, and raise CheckpointError if the checkpoint cannot be read."""

    @property
    def name(self) -> str: ...

    @property
    def codes(self) -> StoredCodes | None:
        """The format of codes that can be kept; None if there are none."""
        ...

    @property
    def num_rows(self) -> int: ...

    @property
    def num_columns(self) -> int: ...

    @property
    def num_bytes(self) -> int:
        """Of all its tensors."""
        ...

    @property
    def reading_bytes(self) -> int:
        """Memory that a read of any size takes, besides the stored bytes and the result."""
        ...

    @property
    def reading_bytes_per_value(self) -> int:
        """The same, for each value that is read."""
        ...

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows [count, num_columns] of floats, in a fresh buffer."""
        ...

    def read_part(self, row: int, first_column: int, num_columns: int) -> torch.Tensor:
        """Some columns [1, num_columns] of one row."""
        ...


class CheckpointWeights(Protocol):
    """The weights of a checkpoint by their logical names: its own (StoredWeights), or changed ones."""

    @property
    def names(self) -> KeysView[str]: ...

    def tensors(self, name: str) -> tuple[TensorInfo, ...]:
        """All tensors that store a weight."""
        ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def open(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        """Open a weight, which must have this shape.

        Raises:
            MissingTensorError: the checkpoint lacks the weight, or a part of it.
            TensorFormatError: a tensor has another shape, or a type that cannot be read.
        """
        ...


class StoredWeights:
    """Finds a checkpoint's weights; holds no values.

    Raises:
        TensorFormatError: a weight is stored twice, quantised and not.
    """

    def __init__(self, checkpoint: Checkpoint, quantization: SourceQuantization | None) -> None:
        self._checkpoint = checkpoint
        self._quantization = quantization
        self._parts = _logical_names(checkpoint.names, quantization)

    @property
    def names(self) -> KeysView[str]:
        """Logical names. A companion tensor without its main tensor keeps its own name."""
        return self._parts.keys()

    def tensors(self, name: str) -> tuple[TensorInfo, ...]:
        """All tensors that store a weight."""
        return tuple(self._checkpoint.info(part) for part in self._parts[name])

    def shape(self, name: str) -> tuple[int, ...]:
        """A weight's shape, from the shapes of its tensors."""
        main = self._parts[name][0]
        if isinstance(self._quantization, GptqFormat) and main.endswith(CODES_SUFFIX):
            return gptq_shape(self._checkpoint, name.removesuffix(_WEIGHT), self._quantization)
        return self._checkpoint.info(main).shape

    def open(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        """Open a weight, which must have this shape.

        Raises:
            MissingTensorError: the checkpoint lacks the weight, or a part of it.
            TensorFormatError: a tensor has another shape, or a type that cannot be read.
        """
        parts = self._parts.get(name, (name,))
        if isinstance(self._quantization, GptqFormat) and parts[0].endswith(CODES_SUFFIX):
            return GptqWeight.open(self._checkpoint, name.removesuffix(_WEIGHT), shape, self._quantization)
        if isinstance(self._quantization, Fp8Format) and self._is_float8(parts):
            return Float8Weight.open(self._checkpoint, name, shape)
        num_bytes = self._checkpoint.expect(name, shape, FLOAT_DTYPES)
        return PlainWeight(name, math.prod(shape[:-1]), shape[-1], num_bytes, self._checkpoint)

    def _is_float8(self, parts: tuple[str, ...]) -> bool:
        name = parts[0]
        return len(parts) > 1 or (name in self._checkpoint.names and self._checkpoint.info(name).dtype == "F8_E4M3")


def _logical_names(names: KeysView[str], quantization: SourceQuantization | None) -> dict[str, tuple[str, ...]]:
    """Logical name -> stored tensors, the main one first."""
    parts: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    if isinstance(quantization, Fp8Format):
        for name in names:
            if (weight := name.removesuffix(SCALE_SUFFIX)) != name and weight in names:
                parts[weight] = (weight, name)
                del parts[name]
    elif isinstance(quantization, GptqFormat):
        for name in names:
            if (module := name.removesuffix(CODES_SUFFIX)) != name:
                if module + _WEIGHT in names:
                    raise TensorFormatError(f"{module[:120]} has a weight and a {CODES_SUFFIX[1:]}: remove one")
                found = tuple(module + suffix for suffix in SUFFIXES if module + suffix in names)
                for part in found:
                    del parts[part]
                parts[module + _WEIGHT] = found
    return parts
