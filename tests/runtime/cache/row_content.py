"""Rows written and read through StateBuffers, in any memory, and a graph that is a Python function."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import HostArray, Segment, StateBuffers
from qwonnx.runtime.cache.rows import row_bytes

Arrays = Mapping[str, HostArray]


def random_parts(states: Sequence[StateSpec], num_tokens: int, seed: int = 0) -> list[memoryview]:
    """Parts for from_host(), of random bytes."""
    random = np.random.default_rng(seed)
    return [memoryview(random.bytes(row_bytes(spec, num_tokens))) for spec in states]


def random_segment(buffers: StateBuffers, states: Sequence[StateSpec], num_tokens: int, seed: int = 0) -> Segment:
    return buffers.from_host(num_tokens, random_parts(states, num_tokens, seed))


def in_bytes(buffers: StateBuffers, *segments: Segment) -> list[bytes]:
    return [bytes(part) for part in buffers.to_host(segments)]


class PythonGraph:
    """An IOBinding and a session in one: a run calls a function with the memory that is bound to it.

    Args:
        compute: takes inputs and outputs by name, as the bound arrays.
    """

    def __init__(self, compute: Callable[[Arrays, Arrays], None] = lambda inputs, outputs: None) -> None:
        self.compute = compute
        self.inputs: dict[str, HostArray] = {}
        self.outputs: dict[str, HostArray] = {}

    def bind_input(self, name: str, device: str, device_id: int, dtype: Any, shape: Any, pointer: int) -> None:
        self.inputs[name] = _at(pointer, dtype, shape)

    def bind_output(self, name: str, device: str, device_id: int, dtype: Any, shape: Any, pointer: int) -> None:
        self.outputs[name] = _at(pointer, dtype, shape)

    def run(self, binding: Any) -> None:
        assert binding is self
        self.compute(self.inputs, self.outputs)


def run_rows(
    buffers: StateBuffers, first_row: int, past_lengths: Sequence[int], num_tokens: int, graph: PythonGraph
) -> None:
    """Run a graph on consecutive rows of these lengths, and add num_tokens to each."""
    binding = buffers.bind(graph, first_row, len(past_lengths))
    lengths = buffers.new_host_array([len(past_lengths)], np.int64)
    lengths[:] = past_lengths
    binding.bind_input("past_lengths", lengths)
    binding.bind_input("input_ids", buffers.new_host_array([len(past_lengths), num_tokens], np.int64))
    binding.run(graph)


def addresses(graph: PythonGraph) -> dict[str, int]:
    return {name: array.ctypes.data for name, array in graph.inputs.items()}


def writing(states: Sequence[StateSpec], past: int, num_tokens: int, seed: int = 0) -> PythonGraph:
    """A graph that writes random tokens, and random fixed states, to its first row."""
    parts = random_parts(states, num_tokens, seed)

    def compute(_: Arrays, outputs: Arrays) -> None:
        for spec, part in zip(states, parts, strict=True):
            row = outputs[spec.present][0]
            target = row[:, past : past + num_tokens] if spec.kind in ("key", "value") else row
            target[...] = np.frombuffer(part, row.dtype).reshape(target.shape)

    return PythonGraph(compute)


def rows_of(buffers: StateBuffers, lengths: Mapping[int, int]) -> Iterator[list[bytes]]:
    """The content of rows of these lengths."""
    return (in_bytes(buffers, buffers.copy_out(row, 0, length)) for row, length in lengths.items())


def _at(pointer: int, dtype: Any, shape: tuple[int, ...]) -> HostArray:
    dtype = np.dtype(dtype)
    num_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    memory = (ctypes.c_uint8 * num_bytes).from_address(pointer)
    return np.frombuffer(memory, dtype).reshape(shape)
