"""Random weights in blocks, what they stand for in float64, and how far an int8 kernel may be off.

The bound for one product. A block of activations with largest magnitude m has the scale m / 127, so that each of its
values is off by at most half of it, m / 254. The sum over a block's columns is then off by at most m / 254 times the
sum of the weights' magnitudes, and blocks add up. Float sums add 1e-5 of the sum of magnitudes, which is what kernels
without quantised activations may be off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto, helper, numpy_helper

from qwonnx.runtime.native.library import DOMAIN, NativeLibrary

Floats = NDArray[np.float64]
_FLOAT_ERROR = 1e-5


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix, or a stack of them, of codes: [..., rows, columns]."""

    codes: NDArray[np.uint8]  # [..., rows, columns * bits / 8]
    scales: NDArray[np.float32]  # [..., rows, blocks]
    zero_points: NDArray[np.uint8] | None
    values: Floats  # [..., rows, columns]
    bits: int
    block: int

    def tensors(self, name: str) -> dict[str, NDArray[np.generic]]:
        """By the names of the graph's initializers, in the order of the operators' inputs."""
        named: dict[str, NDArray[np.generic]] = {f"{name}.codes": self.codes, f"{name}.scales": self.scales}
        if self.zero_points is not None:
            named[f"{name}.zero_points"] = self.zero_points
        return named


def random_weight(
    random: np.random.Generator, shape: Sequence[int], bits: int, block: int, zero_points: bool
) -> Weight:
    """shape is [..., rows, columns]."""
    blocked = (*shape[:-1], shape[-1] // block)
    codes = random.integers(0, 1 << bits, tuple(shape), dtype=np.uint8)
    scales = random.uniform(0.001, 0.02, blocked).astype(np.float32)
    zeros = random.integers(0, 1 << bits, blocked, dtype=np.uint8) if zero_points else None
    middle = zeros.astype(np.float64)[..., None] if zeros is not None else float(1 << (bits - 1))
    values = (codes.reshape(*blocked, block) - middle) * scales.astype(np.float64)[..., None]
    packed = None if zeros is None else _pack(zeros, bits)
    return Weight(_pack(codes, bits), scales, packed, values.reshape(tuple(shape)), bits, block)


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    each = 8 // bits
    room = -codes.shape[-1] % each
    padded = np.concatenate([codes, np.zeros((*codes.shape[:-1], room), np.uint8)], -1)
    parts = padded.reshape(*codes.shape[:-1], -1, each) << (np.arange(each, dtype=np.uint8) * bits)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(parts, axis=-1)
    return packed


def product(x: Floats, weight: Weight) -> Floats:
    """x [n, columns] -> [n, rows]."""
    exact: Floats = x @ weight.values.T
    return exact


def product_bound(x: Floats, weight: Weight, *, int8: bool) -> Floats:
    """How far each element of the product may be off; x may be bounds of magnitudes."""
    bound: Floats = _FLOAT_ERROR * (np.abs(x) @ np.abs(weight.values).T)
    return bound + _quantisation_bound(x, weight) if int8 else bound


def _quantisation_bound(x: Floats, weight: Weight) -> Floats:
    largest = np.abs(x).reshape(len(x), -1, weight.block).max(-1)  # [n, blocks]
    sums = np.abs(weight.values).reshape(len(weight.values), -1, weight.block).sum(-1)  # [rows, blocks]
    off: Floats = largest / 254 @ sums.T
    return off


@dataclass(frozen=True, slots=True)
class ExpertsResult:
    """What routed experts yield, [n, hidden], and how far a kernel may be off."""

    output: Floats
    bound: Floats


def routed_experts(
    x: Floats, logits: Floats, gate_up: Weight, down: Weight, top_k: int, *, int8: bool
) -> ExpertsResult:
    """SwiGLU experts, gate and up rows alternating, weighted by the softmax of the chosen logits.

    Bound: with gate and up off by at most a and b, silu(gate) * up is off by at most 1.1 a (|up| + b) + |silu(gate)| b,
    because no slope of silu exceeds 1.1. That error passes through the second product beside the product's own.
    """
    output, bound = np.zeros_like(x), np.zeros_like(x)
    for token in range(len(x)):
        chosen = np.argsort(-logits[token], kind="stable")[:top_k]
        weights = np.exp(logits[token][chosen] - logits[token][chosen].max())
        weights /= weights.sum()
        row = x[token : token + 1]
        for expert, share in zip(chosen, weights, strict=True):
            first, second = _one(gate_up, expert), _one(down, expert)
            rows, error = product(row, first), product_bound(row, first, int8=int8)
            gate, up, gate_error, up_error = rows[:, ::2], rows[:, 1::2], error[:, ::2], error[:, 1::2]
            silu = gate / (1 + np.exp(-gate))
            hidden = silu * up
            off = 1.1 * gate_error * (np.abs(up) + up_error) + np.abs(silu) * up_error + 1e-6 * np.abs(hidden)
            output[token] += share * product(hidden, second)[0]
            passed = off @ np.abs(second.values).T + product_bound(np.abs(hidden) + off, second, int8=int8)
            bound[token] += share * passed[0]
    return ExpertsResult(output, bound)


def _one(stack: Weight, index: int) -> Weight:
    zeros = None if stack.zero_points is None else stack.zero_points[index]
    return Weight(stack.codes[index], stack.scales[index], zeros, stack.values[index], stack.bits, stack.block)


@dataclass(frozen=True, slots=True)
class Node:
    """One node between named tensors."""

    op_type: str
    inputs: Sequence[str]
    attributes: Mapping[str, Any]
    domain: str = DOMAIN


def session(
    nodes: Sequence[Node],
    inputs: Sequence[str],
    constants: Mapping[str, NDArray[np.generic]],
    library: NativeLibrary | None,
    functions: Sequence[FunctionProto] = (),
) -> onnxruntime.InferenceSession:
    """A graph of the nodes, whose outputs are y0, y1, ...; float inputs of any shape; constants are initializers."""
    made = [
        helper.make_node(node.op_type, list(node.inputs), [f"y{i}"], domain=node.domain, **node.attributes)
        for i, node in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(len(nodes))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions), ir_version=10)
    return open_session(model.SerializeToString(), library)


def open_session(model: bytes, library: NativeLibrary | None) -> onnxruntime.InferenceSession:
    """With the library's kernels or without; two threads, which sleep between runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if library:
        library.register(options)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
