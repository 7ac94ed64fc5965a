"""One stored weight: a lowering requests it, the weight stage writes it, and a plan adds it up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qwonnx.export.checkpoint.weight_names import Role, role_of
from qwonnx.export.checkpoint.weight_part import WeightPart
from qwonnx.export.quantization.recipe import WeightStorage

# Suffixes of an item's name for its tensors, if it is quantised.
CODES, SCALES, ZERO_POINTS = SUFFIXES = (".codes", ".scales", ".zero_points")


@dataclass(frozen=True, slots=True)
class WeightItem:
    """One stored weight: the weights that it joins along their rows, and how it is stored."""

    name: str
    weights: tuple[WeightPart, ...]
    storage: WeightStorage

    @property
    def role(self) -> Role:
        return role_of(self.weights[0].name, self.weights[0].shape)

    @property
    def weight_names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.weights)

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(part.stored_shape) for part in self.weights)

    @property
    def num_columns(self) -> int:
        """Input features."""
        return self.weights[0].stored_shape[-1]

    @property
    def num_rows(self) -> int:
        """Output features, of all experts together."""
        return self.num_parameters // self.num_columns

    @property
    def num_matrices(self) -> int:
        """Experts, or 1."""
        return self.weights[0].shape[0] if self.role is Role.EXPERTS else 1

    @property
    def stream_bytes(self) -> tuple[int, ...]:
        """Bytes of the codes (or of the floats), scales and zero points."""
        return self.storage.stream_bytes(self.num_rows, self.num_columns)

    @property
    def num_code_bytes(self) -> int:
        """Bytes of the codes, or of the floats."""
        return self.stream_bytes[0]

    @property
    def num_scale_bytes(self) -> int:
        return self.storage.num_scale_bytes(self.num_parameters)

    @property
    def num_bytes(self) -> int:
        return sum(self.stream_bytes)
