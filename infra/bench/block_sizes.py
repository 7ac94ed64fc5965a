"""Speed of block sizes: MatMulNBits and QMoE alone, with the shapes of Qwen3.5-35B-A3B.

    python -m infra.bench.block_sizes [--blocks 32 64 128] [--rounds 15]

One token and 512; int8 activations (accuracy_level 4), one thread. The variants take turns. The result is the least
processor time of each, because other work on the machine only makes a run slower. A graph has more copies of a weight
than a cache holds, because a token reads each weight once. The last line is JSON.
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
from onnx import TensorProto, helper, numpy_helper

HIDDEN = 2048
# [out_features, in_features] of a linear layer's two largest, and of the head (of a tenth of the vocabulary).
PROJECTIONS = {
    "in_proj_qkv": (8192, HIDDEN),
    "out_proj": (HIDDEN, 4096),
    "lm_head / 10": (24832, HIDDEN),
}
# A quarter of a layer's experts and of the choices: the same tokens per expert, and 100 MB, which no cache holds.
NUM_EXPERTS, TOP_K, INNER = 64, 2, 512
TOKENS = (1, 512)
_UNCACHED_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel under measurement."""

    name: str
    bits: int
    block_size: int
    zero_points: bool

    def __str__(self) -> str:
        return f"{self.name}, {self.bits} bits, {self.block_size}{' with zero points' if self.zero_points else ''}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    rows = []
    for name in (*PROJECTIONS, "experts / 4"):
        variants = [
            Variant(name, bits, size, zero_points)
            for bits, zero_points in ((4, False), (4, True), (8, False))
            for size in options.blocks
        ]
        rows += measure(variants, options.rounds)
    print(json.dumps({"benchmark": "block_sizes", "rows": rows}))


def measure(variants: list[Variant], rounds: int) -> list[dict[str, Any]]:
    """Seconds of each variant for each number of tokens: the least of `rounds`."""
    random = np.random.default_rng(0)
    rows = []
    for num_tokens in TOKENS:
        copies = {variant: _copies(variant) if num_tokens == 1 else 1 for variant in variants}
        sessions = {variant: _session(variant, copies[variant], random) for variant in variants}
        inputs = {
            "x": random.standard_normal((num_tokens, _width(variants[0])), np.float32),
            "router": random.standard_normal((num_tokens, NUM_EXPERTS), np.float32),
        }
        best = dict.fromkeys(variants, float("inf"))
        for _ in range(rounds):
            for variant, session in sessions.items():
                feeds = {value.name: inputs[value.name] for value in session.get_inputs()}
                started = time.thread_time()
                session.run(None, feeds)
                best[variant] = min(best[variant], (time.thread_time() - started) / copies[variant])
        for variant, seconds in best.items():
            row = {
                "kernel": variant.name,
                "bits": variant.bits,
                "block_size": variant.block_size,
                "zero_points": variant.zero_points,
                "tokens": num_tokens,
                "us": round(seconds * 1e6, 1),
            }
            rows.append(row)
            print(f"{variant!s:45} {num_tokens:4} tokens: {seconds * 1e6:9.1f} us", flush=True)
    return rows


def _width(variant: Variant) -> int:
    return HIDDEN if variant.name == "experts / 4" else PROJECTIONS[variant.name][1]


def _copies(variant: Variant) -> int:
    """Copies of a projection; the experts need none."""
    if variant.name == "experts / 4":
        return 1
    num_rows, columns = PROJECTIONS[variant.name]
    return -(-_UNCACHED_BYTES * 8 // (num_rows * columns * variant.bits))


def _session(variant: Variant, copies: int, random: np.random.Generator) -> Any:
    stored: list[Any] = []

    def weight(name: str, shape: tuple[int, ...]) -> list[str]:
        """Names of a weight's codes, scales and zero points, "" if it has none."""
        *rows, columns = shape
        blocks = columns // variant.block_size
        codes = random.integers(0, 256, (*rows, columns * variant.bits // 8), np.uint8)
        scales = random.standard_normal((*rows, blocks), np.float32) * 0.01
        if variant.name != "experts / 4":
            codes = codes.reshape(*rows, blocks, -1)
        stored.append(numpy_helper.from_array(codes, name))
        stored.append(numpy_helper.from_array(scales, name + ".scales"))
        if not variant.zero_points:
            return [name, name + ".scales", ""]
        points = random.integers(0, 256, (*rows, blocks * variant.bits // 8), np.uint8)
        stored.append(numpy_helper.from_array(points, name + ".zero_points"))
        return [name, name + ".scales", name + ".zero_points"]

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, _width(variant)])]
    if variant.name == "experts / 4":
        inputs.append(helper.make_tensor_value_info("router", TensorProto.FLOAT, [None, NUM_EXPERTS]))
        up = weight("gate_up", (NUM_EXPERTS, 2 * INNER, HIDDEN))
        down = weight("down", (NUM_EXPERTS, HIDDEN, INNER))
        names = ["x", "router", up[0], up[1], "", down[0], down[1]]
        if variant.zero_points:
            names += ["", "", "", "", up[2], down[2]]
        nodes = [
            helper.make_node(
                "QMoE",
                names,
                ["y"],
                domain="com.microsoft",
                k=TOP_K,
                activation_type="swiglu",
                swiglu_fusion=1,
                activation_alpha=1.0,
                activation_beta=0.0,
                normalize_routing_weights=1,
                expert_weight_bits=variant.bits,
                block_size=variant.block_size,
                accuracy_level=4,
            )
        ]
    else:
        num_rows, columns = PROJECTIONS[variant.name]
        nodes = [
            helper.make_node(
                "MatMulNBits",
                ["x", *weight(f"w{copy}", (num_rows, columns))],
                [f"y{copy}"],
                domain="com.microsoft",
                N=num_rows,
                K=columns,
                bits=variant.bits,
                block_size=variant.block_size,
                accuracy_level=4,
            )
            for copy in range(copies)
        ]
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [None, None]) for node in nodes]
    graph = helper.make_graph(nodes, "kernel", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
