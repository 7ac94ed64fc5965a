"""The native operators of a linear-attention layer beside the nodes of ONNX Runtime that they replace, taking turns.

    python -m infra.bench.native_layers [--threads 2] [--rounds 9] [--kernels delta conv norm]

Shapes are those of Qwen3.5-35B-A3B: rows of one token, and chunks of one row. A graph has more layers than a cache
holds, because a token reads each layer's state once; states are bound in place, as the runtime binds them. One thread:
processor time, the least of the rounds, which other work on the machine disturbs little. More threads: elapsed time, on
a quiet machine. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qwonnx.runtime.native.library import DOMAIN, NativeLibrary, native_library

KEY_HEADS, VALUE_HEADS, DIM, TAPS = 16, 32, 128, 4
KEY_WIDTH, VALUE_WIDTH = KEY_HEADS * DIM, VALUE_HEADS * DIM
CHANNELS = 2 * KEY_WIDTH + VALUE_WIDTH
_EPSILON = 1e-6
_MICROSOFT = "com.microsoft"
_UNCACHED_BYTES = 100 << 20
_SHAPES = ((1, 1), (4, 1), (8, 1), (1, 16), (1, 64), (1, 512))  # rows, tokens of each


@dataclass(frozen=True, slots=True)
class Kernel:
    """One operator: its inputs without the batch axis of states, its outputs, and both groups of nodes."""

    inputs: dict[str, tuple[int, ...]]  # columns of a token
    constants: dict[str, tuple[int, ...]]
    state: tuple[int, ...] | None  # of a row
    y: int  # columns
    operator: tuple[str, list[str], dict[str, Any]]
    theirs: list[tuple[str, list[str], list[str], dict[str, Any]]]


KERNELS = {
    "delta": Kernel(
        {"qkv": (CHANNELS,), "b": (VALUE_HEADS,), "a": (VALUE_HEADS,)},
        {"decay_scale": (VALUE_HEADS,), "dt_bias": (VALUE_HEADS,)},
        (VALUE_HEADS, DIM, DIM),
        VALUE_WIDTH,
        (
            "GatedDeltaRule",
            ["qkv", "b", "a", "decay_scale", "dt_bias", "past"],
            {"num_key_heads": KEY_HEADS, "epsilon": _EPSILON},
        ),
        [
            ("Split", ["qkv", "widths"], ["qk", "v"], {"axis": -1}),
            (
                "BranchwiseRMSNorm",
                ["qk", "unit_scale"],
                ["unit"],
                {"num_branches": 2 * KEY_HEADS, "epsilon": _EPSILON / DIM},
            ),
            ("Split", ["unit"], ["q", "k"], {"axis": -1, "num_outputs": 2}),
            ("LinearAttentionGate", ["a", "dt_bias", "decay_scale", "b"], ["decay", "beta"], {}),
            (
                "LinearAttention",
                ["q", "k", "v", "past", "decay", "beta"],
                ["y", "present"],
                {
                    "q_num_heads": KEY_HEADS,
                    "kv_num_heads": VALUE_HEADS,
                    "update_rule": "gated_delta",
                    "scale": DIM**-0.5,
                },
            ),
        ],
    ),
    "conv": Kernel(
        {"x": (CHANNELS,)},
        {"weight": (CHANNELS, 1, TAPS)},
        (CHANNELS, TAPS - 1),
        CHANNELS,
        ("CausalConv", ["x", "weight", "past"], {}),
        [
            ("Transpose", ["x"], ["by_channel"], {"perm": [0, 2, 1]}),
            ("CausalConvWithState", ["by_channel", "weight", "", "past"], ["convolved", "present"], {}),
            ("Transpose", ["convolved"], ["by_token"], {"perm": [0, 2, 1]}),
            ("QuickGelu", ["by_token"], ["y"], {"alpha": 1.0}),
        ],
    ),
    "norm": Kernel(
        {"x": (VALUE_WIDTH,), "gate": (VALUE_WIDTH,)},
        {"weight": (DIM,)},
        None,
        VALUE_WIDTH,
        ("GatedRMSNorm", ["x", "gate", "weight"], {"epsilon": _EPSILON}),
        [
            ("BranchwiseRMSNorm", ["x", "weight"], ["normed"], {"num_branches": VALUE_HEADS, "epsilon": _EPSILON}),
            ("QuickGelu", ["gate"], ["silu"], {"alpha": 1.0}),
            ("Mul", ["normed", "silu"], ["y"], {}),
        ],
    ),
}
_STANDARD = ("Split", "Transpose", "Mul")


class Layers:
    """A session of one kernel's nodes, for `copies` layers, and its bound inputs, states and outputs."""

    def __init__(self, kernel: Kernel, own: bool, rows: int, tokens: int, library: NativeLibrary, threads: int) -> None:
        random = np.random.default_rng(0)
        state_bytes = 4 * rows * int(np.prod(kernel.state or (0,)))
        self.copies = min(64, max(4, _UNCACHED_BYTES // max(1, state_bytes))) if tokens == 1 else 2
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        library.register(options)
        model = _model(kernel, own, self.copies, random)
        self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._bound: list[NDArray[np.float32]] = []
        for name, columns in kernel.inputs.items():
            self._bind(random.standard_normal((rows, tokens, *columns)).astype(np.float32), [name], [])
        for i in range(self.copies):
            self._bind(np.zeros((rows, tokens, kernel.y), np.float32), [], [f"y_{i}"])
            if kernel.state:
                state = random.standard_normal((rows, *kernel.state)).astype(np.float32)
                self._bind(state, [f"past_{i}"], [f"present_{i}"])

    def _bind(self, array: NDArray[np.float32], inputs: list[str], outputs: list[str]) -> None:
        self._bound.append(array)
        for name in inputs:
            self._binding.bind_input(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        for name in outputs:
            self._binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def seconds(self, threads: int) -> float:
        """Of one layer."""
        clock = time.thread_time if threads == 1 else time.perf_counter
        started = clock()
        self._session.run_with_iobinding(self._binding)
        return (clock() - started) / self.copies


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--kernels", nargs="+", choices=list(KERNELS), default=list(KERNELS))
    options = parser.parse_args(arguments)
    library = native_library()
    print(f"{library.instructions} kernels, {options.threads} threads")
    results = []
    for name in options.kernels:
        for rows, tokens in _SHAPES:
            pair = {own: Layers(KERNELS[name], own, rows, tokens, library, options.threads) for own in (True, False)}
            best = {own: layers.seconds(options.threads) for own, layers in pair.items()}
            for _ in range(options.rounds):
                for own, layers in pair.items():
                    best[own] = min(best[own], layers.seconds(options.threads))
            own_us, theirs_us = best[True] * 1e6, best[False] * 1e6
            print(
                f"{name:6}{rows} rows, {tokens:3} tokens: {own_us:9.1f} us, onnxruntime {theirs_us:9.1f} us, "
                f"{theirs_us / own_us:.2f} times",
                flush=True,
            )
            results.append(
                {
                    "kernel": name,
                    "rows": rows,
                    "tokens": tokens,
                    "own_us": round(own_us, 1),
                    "onnxruntime_us": round(theirs_us, 1),
                    "ratio": round(theirs_us / own_us, 2),
                }
            )
    result = {"benchmark": "native_layers", "instructions": library.instructions, "threads": options.threads}
    print(json.dumps({**result, "layers": results}))


def _model(kernel: Kernel, own: bool, copies: int, random: np.random.Generator) -> bytes:
    constants = {name: random.uniform(-0.5, 0.5, shape).astype(np.float32) for name, shape in kernel.constants.items()}
    if "decay_scale" in constants:
        constants["decay_scale"] = -np.abs(constants["decay_scale"])
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    stored.append(numpy_helper.from_array(np.array([2 * KEY_WIDTH, VALUE_WIDTH]), "widths"))
    stored.append(numpy_helper.from_array(np.full(DIM, DIM**-0.5, np.float32), "unit_scale"))
    shared = {*kernel.inputs, *(tensor.name for tensor in stored), ""}
    op_type, inputs, attributes = kernel.operator
    group = [(op_type, inputs, ["y", *(["present"] if kernel.state else [])], attributes)] if own else kernel.theirs
    nodes = []
    for i in range(copies):
        for op, node_inputs, node_outputs, node_attributes in group:
            domain = DOMAIN if own else "" if op in _STANDARD else _MICROSOFT
            before, after = ([n if n in shared else f"{n}_{i}" for n in each] for each in (node_inputs, node_outputs))
            nodes.append(helper.make_node(op, before, after, domain=domain, **node_attributes))
    states = range(copies) if kernel.state else range(0)
    names_in = [*kernel.inputs, *(f"past_{i}" for i in states)]
    names_out = [*(f"y_{i}" for i in range(copies)), *(f"present_{i}" for i in states)]
    ins, outs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
        for names in (names_in, names_out)
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(_MICROSOFT, 1), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "layers", ins, outs, stored), opset_imports=opsets, ir_version=10
    )
    serialized: bytes = model.SerializeToString()
    return serialized


if __name__ == "__main__":
    main()
