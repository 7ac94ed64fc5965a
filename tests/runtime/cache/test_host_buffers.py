"""Properties of rows in host memory only: one array per state, bytes used in place."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.cache.host_segments import HostSegment
from tests.runtime.cache.row_content import PythonGraph, addresses, in_bytes, random_parts

pytestmark = pytest.mark.fast

KEY = StateSpec(1, "key", "past.1.key", "present.1.key", "float32", ("batch", 2, "max_model_len", 4))
CONV = StateSpec(0, "conv_state", "past.0.conv", "present.0.conv", "float32", ("batch", 5, 3))
STATES = (CONV, KEY)


def test_rows_lie_one_after_the_other_from_an_aligned_start_and_are_updated_in_place() -> None:
    buffers, zero, two = HostBuffers(STATES, 4, 10), PythonGraph(), PythonGraph()
    buffers.bind(zero, 0, 4)
    buffers.bind(two, 2, 2)
    assert {name: array.shape for name, array in zero.inputs.items()} == {
        "past.0.conv": (4, 5, 3),
        "past.1.key": (4, 2, 10, 4),
    }
    for spec in STATES:
        assert zero.inputs[spec.past].ctypes.data % 64 == 0
        assert addresses(two)[spec.past] == zero.inputs[spec.past][2].ctypes.data
        assert zero.outputs[spec.present].ctypes.data == addresses(zero)[spec.past]
        assert not zero.inputs[spec.past].any()
    assert buffers.reserved_bytes == 4 * (5 * 3 + 2 * 10 * 4) * 4


def test_a_sequence_writes_no_page_beyond_its_own_tokens() -> None:
    buffers, graph = HostBuffers(STATES, 2, 10), PythonGraph()
    segment = buffers.from_host(6, [memoryview(b"\1" * 60), memoryview(b"\1" * 192)])
    buffers.restore(1, [segment])
    buffers.bind(graph, 1, 1)
    keys = graph.inputs["past.1.key"][0]
    assert keys[:, :6].all()
    assert not keys[:, 6:].any()


def test_a_segment_from_bytes_lies_where_they_lie() -> None:
    parts = random_parts(STATES, 3)
    with mmap.mmap(-1, 4096) as memory:
        memory.write(b"".join(parts))
        view = memoryview(memory).toreadonly()
        lying = [view[:60], view[60:156]]
        segment = HostBuffers(STATES, 2, 10).from_host(3, lying)
        assert isinstance(segment, HostSegment)
        start = np.frombuffer(view, np.uint8).ctypes.data
        assert [array.ctypes.data - start for array in segment.arrays.values()] == [0, 60]
        assert not any(array.flags.writeable for array in segment.arrays.values())
        del segment, lying, view


def test_a_segment_alone_becomes_bytes_without_a_copy() -> None:
    buffers = HostBuffers(STATES, 2, 10)
    parts = random_parts(STATES, 3)
    segment = buffers.from_host(3, parts)
    given = list(buffers.to_host([segment]))
    assert [np.shares_memory(one, other) for one, other in zip(given, parts, strict=True)] == [True, True]
    assert in_bytes(buffers, segment) == [bytes(part) for part in parts]


def test_parts_of_another_size_are_a_mistake_of_ours() -> None:
    buffers = HostBuffers(STATES, 2, 10)
    with pytest.raises(ValueError, match="reshape"):
        buffers.from_host(4, random_parts(STATES, 3))


def test_reserving_touches_no_memory() -> None:
    large = StateSpec(1, "key", "k", "p", "float32", ("batch", 8, "max_model_len", 256))
    buffers, graph = HostBuffers([large], 9, 32_768), PythonGraph()  # 2.4 GB of address space
    assert buffers.reserved_bytes > 2 << 30
    buffers.bind(graph, 8, 1)
    assert not graph.inputs["k"][0, 0, :4].any()
