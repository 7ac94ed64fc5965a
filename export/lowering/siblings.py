"""The rule by which projections are joined into one matrix product, without a graph.

The lowering applies it to nodes and a plan applies it to names, so both find the same weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.quantization.recipe import WeightStorage
from qwonnx.export.weight_files.weight_item import WeightItem

# A matrix with more elements is not joined: measured on two cores, where its product takes about 0.1 ms.
LARGE = 4 << 20

# They take a quantised row in turn, so that joined matrices would only need a Split.
_FUSED = (".in_proj_z.weight", *(f".self_attn.{name}_proj.weight" for name in "qkv"))

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Projection(Generic[_Item]):
    """A matrix that multiplies an activation; `item` is the caller's own name or node for it."""

    item: _Item
    x: Hashable  # the activation
    storage: WeightStorage
    num_elements: int
    name: str  # of the matrix

    @property
    def can_be_joined(self) -> bool:
        """False for large matrices, and for codes of projections that a fused operator takes beside each other."""
        is_part = self.storage.is_quantized and self.name.endswith(_FUSED)
        return self.num_elements <= LARGE and not is_part


def sibling_groups(projections: Iterable[Projection[_Item]]) -> list[list[_Item]]:
    """Small projections of one activation and one storage, in the given order; groups of one are left out."""
    groups: defaultdict[tuple[Hashable, WeightStorage], list[_Item]] = defaultdict(list)
    for projection in projections:
        if projection.can_be_joined:
            groups[projection.x, projection.storage].append(projection.item)
    return [group for group in groups.values() if len(group) > 1]


def joined_name(names: Sequence[str]) -> str:
    """layers.0.self_attn.q_proj.weight, layers.0.self_attn.k_proj.weight -> layers.0.self_attn.q_proj+k_proj.weight."""
    stems = [name.removesuffix(".weight") for name in names]
    prefix = stems[0]
    while not all(stem.startswith(prefix + ".") for stem in stems):
        prefix = prefix.rpartition(".")[0]
    prefix += "."
    return prefix + "+".join(stem.removeprefix(prefix) for stem in stems) + ".weight"


def feed_forward_names(config: ModelConfig, layer: str) -> list[str]:
    """The projections that share the input of a layer's second half, in the order in which the modules apply them."""
    names = ["gate_proj", "up_proj"]
    if config.num_experts:
        names = ["shared_expert_gate", *(f"shared_expert.{name}" for name in names)]
    return [f"{layer}.mlp.{name}.weight" for name in names]


def join_items(items: Sequence[WeightItem], candidates: Iterable[Sequence[str]]) -> list[WeightItem]:
    """Join the siblings within each list of names; a joined item goes to the end."""
    by_name = {item.name: item for item in items}
    projections = (
        Projection(name, index, by_name[name].storage, by_name[name].num_parameters, name)
        for index, names in enumerate(candidates)
        for name in names
    )
    for group in sibling_groups(projections):
        parts = [by_name.pop(name) for name in group]
        name = joined_name(group)
        by_name[name] = WeightItem(name, tuple(part for item in parts for part in item.weights), parts[0].storage)
    return list(by_name.values())
