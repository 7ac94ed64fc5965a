"""How much each input feature of a weight counts when its scales are chosen; `calibration.py` learns it from a text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Importance:
    """By weight name: positive, bfloat16 [num_groups, in_features], of mean 1 in every group.

    A group is one expert of `mlp.experts.*`, or the whole weight. Weights that are not here count alike everywhere.
    """

    by_name: Mapping[str, Tensor]

    @property
    def sha256(self) -> str:
        """Of all values, in the order of the names."""
        digest = hashlib.sha256()
        for name in sorted(self.by_name):
            digest.update(name.encode())
            digest.update(self.by_name[name].view(torch.int16).numpy().tobytes())
        return digest.hexdigest()

    def of_rows(self, name: str, num_rows: int, start: int, count: int) -> Iterator[tuple[slice, Tensor | None]]:
        """For `count` rows from the start-th of a weight of num_rows: parts of them, and the importance of each.

        The slices count from the start-th row; importance is float32 [in_features].
        """
        groups = self.by_name.get(name)
        if groups is None:
            yield slice(0, count), None
            return
        group_rows = num_rows // len(groups)
        done = 0
        while done < count:
            group, first = divmod(start + done, group_rows)
            stop = min(count, done + group_rows - first)
            yield slice(done, stop), groups[group].float()
            done = stop
