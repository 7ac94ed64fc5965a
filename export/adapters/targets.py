"""Where in a checkpoint's stored weights the modules of an adapter are.

Experts are stored in one tensor a layer and parameter, or in one a matrix, and trained in one parameter or in modules
of one matrix each; every pair of the two is found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.formats.stored_weights import CheckpointWeights
from qwonnx.export.checkpoint.weight_names import DOWN, EMBEDDING, EXPERTS, GATE_UP, HEAD
from qwonnx.export.checkpoint.weight_source import text_prefix

_ONE_EXPERT = re.compile(rf"(layers\.\d+\.{re.escape(EXPERTS)})\.(\d+)\.(gate|up|down)_proj")
_STORED_EXPERT = re.compile(rf"(.*\.{re.escape(EXPERTS)}\.)\d+\.(gate_proj|up_proj|down_proj)\.weight")
_WEIGHT = ".weight"
# Matrices of a parameter, by the order of their rows.
_MATRICES = {GATE_UP: ("gate_proj", "up_proj"), DOWN: ("down_proj",)}


@dataclass(frozen=True, slots=True)
class Target:
    """Consecutive rows of a stored weight, taken as a matrix, that one matrix of an adapter changes.

    row is the first of them in the adapter's matrix, and expert the one whose matrix that is.
    """

    stored: str
    first_row: int
    num_rows: int
    row: int = 0
    expert: int = 0


class Targets:
    """Finds the stored weights of modules.

    Args:
        weights: of the checkpoint.
        config: of the model; its head and embedding are taken as they are used, tied or not.
    """

    def __init__(self, weights: CheckpointWeights, config: ModelConfig) -> None:
        self._weights = weights
        self._inner, self._hidden = config.moe_intermediate_size, config.hidden_size
        self._num_experts = config.num_experts
        self._prefix = text_prefix(weights.names)

    def stored(self, ours: str) -> str:
        """The stored name of a weight: "layers.0.self_attn.q_proj.weight" behind the checkpoint's prefix."""
        return ours if ours == HEAD else self._prefix + ours

    @property
    def embedding(self) -> str:
        return self.stored(EMBEDDING)

    def expert_shape(self, parameter: str) -> tuple[int, int]:
        """Rows and columns of one expert in a parameter."""
        return (self._hidden, self._inner) if parameter == DOWN else (2 * self._inner, self._hidden)

    def matrix(self, module: str) -> tuple[Target, int] | None:
        """The rows of a module with one matrix, and its number of columns; None: the base has no such matrix."""
        name = self.stored(module + _WEIGHT)
        if name in self._weights.names:
            shape = self._weights.shape(name)
            return (Target(name, 0, shape[0]), shape[1]) if len(shape) == 2 else None
        found = _ONE_EXPERT.fullmatch(module)
        if found is None or int(found[2]) >= self._num_experts:
            return None
        parameter = DOWN if found[3] == "down" else GATE_UP
        name = self.stored(f"{found[1]}.{parameter}")
        if name not in self._weights.names:
            return None
        matrices, (all_rows, columns) = _MATRICES[parameter], self.expert_shape(parameter)
        rows = all_rows // len(matrices)
        place = int(found[2]) * len(matrices) + matrices.index(f"{found[3]}_proj")
        return Target(name, place * rows, rows), columns

    def experts(self, module: str, parameter: str) -> Iterator[Target]:
        """The rows of every expert's matrix of a parameter; nothing if the base has no such experts."""
        matrices, fused = _MATRICES[parameter], self.stored(f"{module}.{parameter}")
        whole, _ = self.expert_shape(parameter)
        rows = whole // len(matrices)
        for expert in range(self._num_experts):
            if fused in self._weights.names:
                yield Target(fused, expert * whole, whole, 0, expert)
                continue
            for place, matrix in enumerate(matrices):
                name = self.stored(f"{module}.{expert}.{matrix}{_WEIGHT}")
                if name in self._weights.names:
                    yield Target(name, 0, rows, place * rows, expert)

    def fellows(self, stored: str) -> tuple[str, ...]:
        """The stored weights that one kernel takes together with this one, which it takes in one format only."""
        found = _STORED_EXPERT.fullmatch(stored)
        if found is None:
            return (stored,)
        matrices = next(names for names in _MATRICES.values() if found[2] in names)
        names = (f"{found[1]}{expert}.{name}{_WEIGHT}" for expert in range(self._num_experts) for name in matrices)
        return tuple(name for name in names if name in self._weights.names)
