"""Segments in host memory: of rows that are in host memory too, or on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from msgspec import Struct

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import HostArray, Segment
from qwonnx.runtime.cache.rows import is_growing, row_shape

_BITS = {"bfloat16": "uint16", "float8e4m3fn": "uint8"}


class HostSegment(Struct, frozen=True):
    """Arrays that are never written: copies of a row's arrays, or views of bytes from outside."""

    num_tokens: int
    arrays: Mapping[str, HostArray]  # rows.row_shape() each, by the state's name

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())


def storage_dtype(spec: StateSpec) -> np.dtype[Any]:
    """The numbers of a state in the host's memory: the bits of a type that numpy does not have."""
    return np.dtype(_BITS.get(spec.dtype, spec.dtype))


def own_segment(segment: Segment) -> HostSegment:
    """A segment that buffers get back."""
    assert isinstance(segment, HostSegment), "a segment of other buffers"
    return segment


def segment_bytes(states: Sequence[StateSpec], segments: Sequence[Segment]) -> Iterator[memoryview]:
    """The content of consecutive segments: StateBuffers.to_host()."""
    arrays = [own_segment(segment).arrays for segment in segments]
    for spec in states:
        pieces = [each[spec.past] for each in (arrays if is_growing(spec) else arrays[-1:])]
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
        yield whole.reshape(-1).view(np.uint8).data


def segment_of(states: Sequence[StateSpec], num_tokens: int, parts: Sequence[memoryview]) -> HostSegment:
    """A segment of bytes from outside, which are used in place: StateBuffers.from_host()."""
    arrays = {}
    for spec, part in zip(states, parts, strict=True):
        array = np.frombuffer(part, storage_dtype(spec)).reshape(row_shape(spec, num_tokens))
        array.flags.writeable = False
        arrays[spec.past] = array
    return HostSegment(num_tokens, arrays)
