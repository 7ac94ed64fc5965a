"""The weight files that an artifact will have: the layout of `external_data`, without writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwonnx.export.weight_files.layout import ShardLayout, StoredSize, lay_out
from qwonnx.export.weight_files.weight_item import WeightItem


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the artifact."""

    path: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """All shards and their files."""

    shards: tuple[ShardLayout, ...]
    files: tuple[PlannedFile, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, with the padding of tensors to whole pages."""
        return sum(file.num_bytes for file in self.files)


def lay_out_weights(weights: Sequence[WeightItem]) -> WeightLayout:
    """The layout of weights that are written in this order."""
    shards = lay_out([StoredSize(weight.stream_bytes) for weight in weights])
    files = tuple(PlannedFile(*file) for shard in shards for file in zip(shard.files, shard.file_bytes, strict=True))
    return WeightLayout(shards, files)
