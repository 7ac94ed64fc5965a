"""How large the weight files of an artifact will be: the places that `ExternalDataWriter` gives, without writing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwonnx.export.external_data import ALIGNMENT, SHARD_BYTES, ExternalTensor
from qwonnx.export.planning.decoder_weights import StoredWeight


@dataclass(frozen=True, slots=True)
class WeightPlaces:
    """Where a stored weight's codes (or float32 values) and scales will lie."""

    codes: ExternalTensor
    scales: ExternalTensor | None


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the artifact."""

    path: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """All weight files, and what lies where, in the order of the weights."""

    places: tuple[WeightPlaces, ...]
    files: tuple[PlannedFile, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, with what pads tensors to whole pages."""
        return sum(file.num_bytes for file in self.files)


def lay_out(weights: Sequence[StoredWeight], shard_bytes: int = SHARD_BYTES) -> WeightLayout:
    """The layout of weights that are written in this order: a tensor goes to the first file that has room.

    A weight's codes and scales are written at once, so its scales go to another file than its codes.
    """
    sizes: list[int] = []  # of the files so far

    def place(num_bytes: int, busy: int | None) -> tuple[int, ExternalTensor]:
        for index, size in enumerate(sizes):
            if index != busy and (size == 0 or size + ALIGNMENT + num_bytes <= shard_bytes):
                break
        else:
            index = len(sizes)
            sizes.append(0)
        offset = sizes[index] + -sizes[index] % ALIGNMENT
        sizes[index] = offset + num_bytes
        return index, ExternalTensor(_file_name(index), offset, num_bytes)

    places = []
    for weight in weights:
        index, codes = place(weight.num_code_bytes, None)
        scales = place(weight.num_scale_bytes, index)[1] if weight.storage.is_quantized else None
        places.append(WeightPlaces(codes, scales))
    files = tuple(PlannedFile(_file_name(index), size) for index, size in enumerate(sizes))
    return WeightLayout(tuple(places), files)


def _file_name(index: int) -> str:
    return f"weights-{index + 1:05d}.bin"
