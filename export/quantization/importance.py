"""The importance of a weight's input features for the choice of its scales; `calibration.py` learns it from a text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Importance:
    """By weight name: positive, bfloat16 [num_groups, in_features], of mean 1 in every group.

    A group is one expert of `mlp.experts.*`, or the whole weight. Input features of other weights are equal.
    """

    by_name: Mapping[str, Tensor]

    @property
    def sha256(self) -> str:
        """Hash of all values, in the order of the names."""
        digest = hashlib.sha256()
        for name in sorted(self.by_name):
            digest.update(name.encode())
            digest.update(self.by_name[name].view(torch.int16).numpy().tobytes())
        return digest.hexdigest()

    def of_rows(self, name: str, num_rows: int, start: int, count: int) -> Iterator[tuple[slice, Tensor | None]]:
        """Parts of `count` rows from row `start` of a weight of num_rows, and the importance of each part.

        The slices count from row `start`; importance is float32 [in_features], or None if all are equal.
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
