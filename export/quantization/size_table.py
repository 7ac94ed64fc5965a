"""Bytes and storage of each kind of weight: the closing table of an export."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from qwonnx.export.checkpoint.weight_names import kind_of
from qwonnx.export.checkpoint.weight_part import WeightPart
from qwonnx.export.quantization.recipe import WeightStorage
from qwonnx.runtime.artifact.manifest import WeightGroup


class Stored(Protocol):
    """Weights that are stored as one."""

    @property
    def weights(self) -> tuple[WeightPart, ...]: ...

    @property
    def storage(self) -> WeightStorage: ...


def weight_groups(items: Sequence[Stored]) -> tuple[WeightGroup, ...]:
    """One group for every kind of weight and every storage, the largest first."""
    totals: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for item in items:
        for part in item.weights:
            total = totals[kind_of(part.name), item.storage.name]
            total[0] += 1
            total[1] += math.prod(part.stored_shape)
            total[2] += stored_bytes(part.stored_shape, item.storage)
    groups = (WeightGroup(kind, storage, *total) for (kind, storage), total in totals.items())
    return tuple(sorted(groups, key=lambda group: (-group.num_bytes, group.kind)))


def stored_bytes(shape: tuple[int, ...], storage: WeightStorage) -> int:
    """Bytes of a weight's codes, scales and zero points, or of its floats."""
    return sum(storage.stream_bytes(math.prod(shape[:-1]), shape[-1]))
