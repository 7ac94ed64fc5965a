"""One stored weight: what the lowering asks for, and what the weight stage writes."""

from __future__ import annotations

from dataclasses import dataclass

from qwonnx.export.quantization.recipe import WeightStorage

# What follows an item's name in those of its tensors, where it is quantised.
CODES, SCALES, ZERO_POINTS = SUFFIXES = (".codes", ".scales", ".zero_points")


@dataclass(frozen=True, slots=True)
class WeightItem:
    """One stored weight: (name, shape) of the logical weights that it joins along their rows, and how it is stored."""

    name: str
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    storage: WeightStorage
