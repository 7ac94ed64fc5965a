"""The places of the bytes of weights, which depend only on their sizes.

    weights-00001.bin                codes, and weights that stay floats
    weights-00001.scales.bin         the scales of those codes, in the same order
    weights-00001.zero_points.bin    their zero points, if they have any

The files of a shard, one for each stream of bytes, hold consecutive weights. A weight's streams are made together,
slice by slice, but each must be contiguous: with a file for each stream, all can be appended as they are made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# A shard takes a sixteenth of all codes, so that several can be written at a time. The bounds give small models few
# files, and large models files that are easy to copy. A larger tensor is alone in its shard.
_SHARDS = 16

MIN_SHARD_BYTES = 256 << 20

MAX_SHARD_BYTES = 4 << 30

# A page, because ONNX Runtime maps whole pages into memory.
ALIGNMENT = 4096

# The suffix of each stream's file. A weight has the first, the first two, or all.
STREAMS = ("", ".scales", ".zero_points")

_FILE = re.compile(r"weights-\d{5,}(\.scales|\.zero_points)?\.bin")


@dataclass(frozen=True, slots=True)
class ExternalTensor:
    """The place of a tensor's bytes."""

    file: str  # relative to the artifact's folder
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class StoredSize:
    """Bytes of one stored weight in each of its streams: codes or floats, scales, zero points."""

    stream_bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WeightPlace:
    """The place of one stored weight: a tensor in each of its streams."""

    tensors: tuple[ExternalTensor, ...]


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """The places of consecutive weights, from weight `first`, in one shard."""

    number: int  # from 1
    first: int
    places: tuple[WeightPlace, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The file of each stream that one of the weights has."""
        return tuple(_file(self.number, stream) for stream in range(len(self.file_bytes)))

    @property
    def file_bytes(self) -> tuple[int, ...]:
        """Final sizes of the files."""
        ends: dict[int, int] = {}
        for place in self.places:
            ends.update(enumerate(tensor.offset + tensor.num_bytes for tensor in place.tensors))
        return tuple(ends[stream] for stream in range(len(ends)))

    @property
    def num_bytes(self) -> int:
        return sum(self.file_bytes)


def lay_out(sizes: Sequence[StoredSize], shard_bytes: int | None = None) -> tuple[ShardLayout, ...]:
    """The places of weights of these sizes, in their order; they depend on nothing else.

    Args:
        sizes: of the weights.
        shard_bytes: limit of the codes in a shard that has more than one weight; None: see _SHARDS.
    """
    if shard_bytes is None:
        share = sum(size.stream_bytes[0] for size in sizes) // _SHARDS
        shard_bytes = min(max(share, MIN_SHARD_BYTES), MAX_SHARD_BYTES)
    shards: list[ShardLayout] = []
    places: list[WeightPlace] = []
    ends = [0] * len(STREAMS)
    for index, size in enumerate(sizes):
        if places and _aligned(ends[0]) + size.stream_bytes[0] > shard_bytes:
            shards.append(ShardLayout(len(shards) + 1, index - len(places), tuple(places)))
            places, ends = [], [0] * len(STREAMS)
        tensors = tuple(
            ExternalTensor(_file(len(shards) + 1, stream), _aligned(ends[stream]), num_bytes)
            for stream, num_bytes in enumerate(size.stream_bytes)
        )
        places.append(WeightPlace(tensors))
        ends[: len(tensors)] = (tensor.offset + tensor.num_bytes for tensor in tensors)
    if places:
        shards.append(ShardLayout(len(shards) + 1, len(sizes) - len(places), tuple(places)))
    return tuple(shards)


def is_weight_file(name: str) -> bool:
    """Whether a name is that of a weight file."""
    return _FILE.fullmatch(name) is not None


def _file(number: int, stream: int) -> str:
    return f"weights-{number:05d}{STREAMS[stream]}.bin"


def _aligned(offset: int) -> int:
    return offset + -offset % ALIGNMENT
