"""How each weight will be stored, from the recipe and from the codes that the checkpoint already has.

If the recipe asks for codes and the checkpoint has codes, those are kept, with their bits, scales and zero points:
another quantisation could only add error. If it asks for floats, they are dequantised. Blocks may become smaller than
the checkpoint's groups, to divide the input features or to fit a kernel; they then repeat their group's scale.

Floats that a kernel takes in every type keep the checkpoint's bfloat16. float16 becomes float32, as everywhere else:
a processor without F16C converts it slowly, and published checkpoints are in bfloat16.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from qwonnx.export.checkpoint.formats.codes import StoredCodes
from qwonnx.export.checkpoint.weight_names import ExpertTensor
from qwonnx.export.errors import RecipeError
from qwonnx.export.quantization.recipe import BFLOAT16, BLOCK_SIZES, FLOAT32, Recipe, WeightStorage


class StoredFormats(Protocol):
    """How a checkpoint stores its weights: read from its tensors, or foreseen from config.json."""

    def stored_codes(self, name: str, shape: tuple[int, ...]) -> frozenset[StoredCodes | None]:
        """The formats of a weight's codes: one, unless its parts differ; None is floats."""
        ...

    def is_bfloat16(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether bfloat16 has every value of a weight exactly."""
        ...


class StoragePlan:
    """The storage of every weight of one checkpoint under one recipe."""

    def __init__(self, recipe: Recipe, formats: StoredFormats) -> None:
        self._recipe = recipe
        self._formats = formats
        self._known: dict[str, WeightStorage] = {}

    def storage(self, name: str, shape: tuple[int, ...]) -> WeightStorage:
        """How to store a weight.

        The two expert tensors of a layer run in one kernel: they get one block size, and zero points for both or
        neither.

        Raises:
            RecipeError: the recipe cannot be applied, or the checkpoint's codes cannot be kept as it asks.
            MissingTensorError, TensorFormatError: the checkpoint does not have the weight in this shape.
        """
        if name not in self._known:
            storage = self._alone(name, shape)
            if storage.is_quantized and (experts := ExpertTensor.of(name)) is not None:
                other = self._alone(experts.sibling, experts.sibling_shape(shape))
                if other.is_quantized:
                    storage = dataclasses.replace(
                        storage,
                        block_size=min(storage.block_size, other.block_size),
                        has_zero_points=storage.has_zero_points or other.has_zero_points,
                    )
            self._known[name] = storage
        return self._known[name]

    def floats(self, name: str, shape: tuple[int, ...]) -> WeightStorage:
        """bfloat16 if the checkpoint stores the weight in bfloat16, else float32.

        Raises:
            MissingTensorError, TensorFormatError: the checkpoint does not have the weight in this shape.
        """
        return BFLOAT16 if self._formats.is_bfloat16(name, shape) else FLOAT32

    def _alone(self, name: str, shape: tuple[int, ...]) -> WeightStorage:
        wanted = self._recipe.storage(name, shape)
        if not wanted.is_quantized:
            return wanted
        found = self._formats.stored_codes(name, shape)
        if len(found) > 1:
            kinds = ", ".join(sorted("floats" if codes is None else f"int{codes.bits}" for codes in found))
            raise RecipeError(
                f"{name} is stored in several ways by the checkpoint ({kinds}), which one kernel does not take:"
                " give it 32 bits by a rule of a recipe"
            )
        codes = next(iter(found))
        if codes is None:
            return wanted
        return WeightStorage(codes.bits, _block_size(name, shape[-1], codes), codes.has_zero_points)


def _block_size(name: str, num_columns: int, codes: StoredCodes) -> int:
    """The largest block that the kernels take and that lies in one group of input features."""
    for block_size in reversed(BLOCK_SIZES):
        one_group = codes.group_size >= num_columns or codes.group_size % block_size == 0
        if num_columns % block_size == 0 and one_group:
            return block_size
    raise RecipeError(
        f"{name} has {num_columns} input features in groups of {codes.group_size}, which do not divide into blocks of"
        f" {BLOCK_SIZES[0]}: give it 32 bits by a rule of a recipe"
    )
