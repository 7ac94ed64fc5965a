"""A checkpoint's weights by their logical names, for every format of tensors that can store them.

    stored as                                                                    logical name    by
    X                                                                            X               this module
    X, X_scale_inv or X_scale                                                    X               float8.py
    X.qweight, X.qzeros, X.scales, X.g_idx                                       X.weight        gptq.py, awq.py
    X.weight_packed, X.weight_scale, X.weight_shape, X.weight_zero_point, ...    X.weight        integers.py
    X.weight_packed, X.weight_scale, X.weight_global_scale                       X.weight        nvfp4.py
    X.weight, X.weight_scale, X.weight_scale_2                                   X.weight        nvfp4.py
    X.weight, X.weight_scale or X.SCB                                            X.weight        integers.py
    X, X.absmax, X.quant_map, X.quant_state.bitsandbytes__nf4, ...               X               bitsandbytes.py

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
from qwonnx.export.checkpoint.formats.awq import AwqWeight
from qwonnx.export.checkpoint.formats.bitsandbytes import TableWeight
from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.formats.gptq import GptqWeight
from qwonnx.export.checkpoint.formats.integers import IntegerWeight
from qwonnx.export.checkpoint.formats.kinds import StoredKind, kinds_of
from qwonnx.export.checkpoint.formats.nvfp4 import Nvfp4Weight
from qwonnx.export.checkpoint.formats.source_quantization import SourceQuantization
from qwonnx.export.errors import TensorFormatError

if TYPE_CHECKING:
    import torch

# The root of the mean square on normal weights in blocks of 128; test_every_format.py measures it.
_ROUNDED_AGAIN = "where a recipe rounds them again, int4 adds an error of about 10% of their size, int8 of 0.6%"


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """A tensor of floats as a matrix: all axes but the last are flattened."""

    codes: ClassVar[None] = None
    name: str
    num_rows: int
    num_columns: int
    num_bytes: int
    _checkpoint: Checkpoint

    @property
    def reading_bytes(self) -> int:
        return self._checkpoint.reading_bytes(self.name)[0]

    @property
    def reading_bytes_per_value(self) -> int:
        return self._checkpoint.reading_bytes(self.name)[1]

    @property
    def is_bfloat16(self) -> bool:
        return self._checkpoint.info(self.name).dtype == "BF16"

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows [count, num_columns] in the stored dtype."""
        values = self._checkpoint.read_flat(self.name, start * self.num_columns, count * self.num_columns)
        return values.view(count, self.num_columns)

    def read_floats(self, start: int, count: int) -> npt.NDArray[np.float32]:
        """Rows as float32 [count, num_columns], without torch."""
        values = self._checkpoint.read_floats(self.name, start * self.num_columns, count * self.num_columns)
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
        """The same, for each value that is read as a float."""
        ...

    def read(self, start: int, count: int) -> torch.Tensor:
        """Rows [count, num_columns] of floats, in a fresh buffer."""
        ...

    def read_part(self, row: int, first_column: int, num_columns: int) -> torch.Tensor:
        """Some columns [1, num_columns] of one row."""
        ...


def is_transposed(weight: StoredWeight) -> bool:
    """Whether rows of a weight are columns of its tensors, so that few rows take many small reads."""
    return isinstance(weight, GptqWeight | AwqWeight)


def repacking_bytes(weight: StoredWeight) -> int:
    """Memory that a read of codes takes for each value, besides the stored bytes, their transpose and the result."""
    return 1 if isinstance(weight, AwqWeight) else 0


def loss_of(weight: StoredWeight) -> str | None:
    """The format of a weight whose codes a quantiser chose and no kernel takes, and what another rounding of them adds.

    None: it has floats, codes that are kept, or FP8 in a scale's 256 steps, of which int4 loses no more than of floats.
    """
    match weight:
        case Nvfp4Weight():
            return f"NVFP4: {_ROUNDED_AGAIN}"
        case TableWeight():
            return f"{weight.kind}: {_ROUNDED_AGAIN}"
        case GptqWeight() | IntegerWeight() if weight.codes is None:
            return f"groups of permuted input features (desc_act): {_ROUNDED_AGAIN}"
    return None


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
        self._kinds = kinds_of(quantization)
        self._found = _logical_names(checkpoint, self._kinds)

    @property
    def names(self) -> KeysView[str]:
        """Logical names. A companion tensor without its main tensor keeps its own name."""
        return self._found.keys()

    def tensors(self, name: str) -> tuple[TensorInfo, ...]:
        """All tensors that store a weight."""
        return tuple(self._checkpoint.info(part) for part in self._found[name].tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A weight's shape, from its tensors.

        Raises:
            TensorFormatError: they do not say it.
        """
        found = self._found[name]
        return (
            self._checkpoint.info(name).shape if found.kind is None else found.kind.shape(self._checkpoint, found.stem)
        )

    def open(self, name: str, shape: tuple[int, ...]) -> StoredWeight:
        """Open a weight, which must have this shape.

        Raises:
            MissingTensorError: the checkpoint lacks the weight, or a part of it.
            TensorFormatError: a tensor has another shape, or a type that cannot be read.
        """
        found = self._found.get(name)
        if found is not None and found.kind is not None:
            return found.kind.open(self._checkpoint, found.stem, shape)
        num_bytes = self._checkpoint.expect(name, shape, FLOAT_DTYPES)
        return PlainWeight(name, math.prod(shape[:-1]), shape[-1], num_bytes, self._checkpoint)


@dataclass(frozen=True, slots=True)
class _Found:
    """The tensors of a weight, and what they are together; kind None: floats."""

    tensors: tuple[str, ...]
    kind: StoredKind | None = None
    stem: str = ""


def _logical_names(checkpoint: Checkpoint, kinds: tuple[StoredKind, ...]) -> dict[str, _Found]:
    """Logical name -> what stores it."""
    names = checkpoint.names
    found = {name: _Found((name,)) for name in names}
    for kind in kinds:
        for name in names:
            stem = name.removesuffix(kind.sign)
            main = stem + kind.main
            if stem == name or main not in found or found[main].kind is not None:
                continue
            if kind.dtype is not None and checkpoint.info(main).dtype != kind.dtype:
                continue
            weight = stem + kind.weight
            if weight != main and weight in names:
                raise TensorFormatError(f"{stem[:120]} has a weight and a {kind.main[1:]}: remove one")
            parts = tuple(dict.fromkeys(stem + part for part in (kind.main, *kind.companions)))
            present = tuple(part for part in parts if part in found)
            for part in present:
                del found[part]
            found[weight] = _Found(present, kind, stem)
        if kind.is_known_by_dtype:
            for name in names:
                if name in found and found[name].kind is None and checkpoint.info(name).dtype == kind.dtype:
                    found[name] = _Found((name,), kind, name)
    return found
