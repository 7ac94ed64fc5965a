"""Which projections are joined into one matrix product: the rule, without a graph.

The lowering asks it about nodes, a plan about names, so that both come to the same weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from qwonnx.export.quantization.recipe import WeightStorage

# Elements of a matrix from which it stands alone: measured on two cores, where its product takes about 0.1 ms.
LARGE = 4 << 20

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Projection(Generic[_Item]):
    """A matrix that multiplies an activation; `item` is what the caller calls it."""

    item: _Item
    x: Hashable  # the activation
    storage: WeightStorage
    num_elements: int


def sibling_groups(projections: Iterable[Projection[_Item]]) -> list[list[_Item]]:
    """Small projections of one activation and one storage, in the given order; groups of one are left out."""
    groups: defaultdict[tuple[Hashable, WeightStorage], list[_Item]] = defaultdict(list)
    for projection in projections:
        if projection.num_elements < LARGE:
            groups[projection.x, projection.storage].append(projection.item)
    return [group for group in groups.values() if len(group) > 1]
