"""The native kernels beside ONNX Runtime's MatMulNBits and QMoE, in one process, taking turns.

    python -m infra.bench.native_kernels [--threads 2] [--blocks 32 128] [--bits 4] [--tokens 1 4 8 64 512] [--rounds 9]

Shapes are those of Qwen3.5-35B-A3B. Activations are int8 (accuracy_level 4), or float32 with --float. A graph has more
weights than a cache holds, because a token reads each weight once. Outputs go to memory that an earlier run used, as in
a decoder: new memory would cost both kernels a page fault each 4 KB. One thread: processor time, the least of the
rounds, which other work on the machine disturbs little. More threads: elapsed time, on a quiet machine. Threads do not
spin between runs, because they would slow down what is measured next. Also shows how fast memory is read by numpy's
maximum of bytes with as many threads. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qwonnx.runtime.native.library import DOMAIN, NativeLibrary, native_library

ROWS, COLUMNS = 8192, 2048  # in_proj_qkv of a linear layer, the largest projection
NUM_EXPERTS, TOP_K, HIDDEN, INNER = 128, 8, 2048, 512  # half a layer's experts: 200 MB of codes
_UNCACHED_BYTES = 100 << 20
_MAX_FEEDS = 16  # different routings of one measurement


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel on one number of tokens."""

    kernel: str  # "linear" or "experts"
    bits: int
    block: int
    zero_points: bool
    level: int  # accuracy_level
    tokens: int


@dataclass(frozen=True, slots=True)
class Graph:
    """A model of one kernel, `products` times."""

    own: bytes
    theirs: bytes
    products: int
    weight_bytes: float  # of one product, if all of it is read


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 4, 8, 64, 512])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--zero-points", action="store_true")
    parser.add_argument("--float", action="store_true", help="float activations (accuracy_level 1)")
    options = parser.parse_args(arguments)
    library = native_library()
    plain_read = read_rate(options.threads)
    print(f"{library.instructions} kernels, {options.threads} threads, plain read {plain_read / 1e9:.1f} GB/s")
    rows = []
    for kernel in ("linear", "experts"):
        for bits in options.bits:
            for block in options.blocks:
                for tokens in options.tokens:
                    case = Case(kernel, bits, block, options.zero_points, 1 if options.float else 4, tokens)
                    rows.append(measure(case, library, options.threads, options.rounds, plain_read))
    result = {"benchmark": "native_kernels", "instructions": library.instructions, "threads": options.threads}
    print(json.dumps({**result, "plain_read_gb_per_s": round(plain_read / 1e9, 1), "rows": rows}))


def measure(
    case: Case, library: NativeLibrary, threads: int, rounds: int, plain_read: float
) -> dict[str, str | int | float | bool]:
    """Seconds of both kernels: the least of the rounds."""
    random = np.random.default_rng(0)
    graph = (_linear if case.kernel == "linear" else _experts)(case, random)
    sessions = {"own": _session(graph.own, library, threads), "theirs": _session(graph.theirs, library, threads)}
    feeds, read = _feeds(case, random, graph)
    bound = {name: _bound(session, feeds) for name, session in sessions.items()}
    clock = time.thread_time if threads == 1 else time.perf_counter
    best = dict.fromkeys(sessions, float("inf"))
    for _ in range(1 + rounds):
        for name, session in sessions.items():
            best[name] = min(best[name], _seconds(session, bound[name], clock))
    own, theirs = (best[name] / graph.products for name in ("own", "theirs"))
    operations = 2 * case.tokens * (ROWS * COLUMNS if case.kernel == "linear" else TOP_K * 3 * HIDDEN * INNER)
    row: dict[str, str | int | float | bool] = {
        "kernel": case.kernel,
        "bits": case.bits,
        "block_size": case.block,
        "zero_points": case.zero_points,
        "activations": "int8" if case.level == 4 else "float32",
        "tokens": case.tokens,
        "own_us": round(own * 1e6, 1),
        "onnxruntime_us": round(theirs * 1e6, 1),
        "ratio": round(theirs / own, 2),
        "gb_per_s": round(read / own / 1e9, 1),
        "of_plain_read": round(read / own / plain_read, 2),
        "gflop_per_s": round(operations / own / 1e9),
    }
    print(
        f"{case.kernel:8}{case.bits} bits in {case.block:3}, {case.tokens:4} tokens: {own * 1e6:10.1f} us, "
        f"onnxruntime {theirs * 1e6:10.1f} us, {theirs / own:.2f} times; {row['gb_per_s']:5} GB/s, "
        f"{row['gflop_per_s']:4} GFLOP/s",
        flush=True,
    )
    return row


def read_rate(threads: int) -> float:
    """Bytes a second of plain reading."""
    data = np.ones(256 << 20, np.uint8)
    parts = np.array_split(data, threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(7):
            started = clock()
            if threads == 1:
                data.max()
            else:
                list(pool.map(lambda part: part.max(), parts))
            best = min(best, clock() - started)
    return len(data) / best


def _bound(session: Any, feeds: list[dict[str, NDArray[np.float32]]]) -> list[Any]:
    """A binding for each feed. All have the outputs of one run, which also warms the session up."""
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, feeds[0]), strict=True))
    bindings = []
    for feed in feeds:
        binding = session.io_binding()
        for name, values in feed.items():
            binding.bind_cpu_input(name, values)
        for name, values in outputs.items():
            binding.bind_output(name, "cpu", 0, np.float32, values.shape, values.ctypes.data)
        bindings.append((binding, outputs))  # the arrays must live as long as the binding
    return bindings


def _seconds(session: Any, bindings: list[Any], clock: Callable[[], float]) -> float:
    started = clock()
    for binding, _ in bindings:
        session.run_with_iobinding(binding)
    return (clock() - started) / len(bindings)


def _feeds(case: Case, random: np.random.Generator, graph: Graph) -> tuple[list[dict[str, NDArray[np.float32]]], float]:
    """Inputs, and the bytes of weights that one product of them reads on average."""
    x = random.standard_normal((case.tokens, COLUMNS), np.float32)
    if case.kernel == "linear":
        return [{"x": x}], graph.weight_bytes
    logits = [
        random.standard_normal((case.tokens, NUM_EXPERTS), np.float32) for _ in range(max(1, _MAX_FEEDS // case.tokens))
    ]
    used = [len(np.unique(np.argsort(-values, axis=1)[:, :TOP_K])) for values in logits]
    feeds = [{"x": x, "logits": values} for values in logits]
    return feeds, graph.weight_bytes * float(np.mean(used)) / NUM_EXPERTS


class _Weights:
    """Random codes, scales and zero points, and the bytes of all of them."""

    def __init__(self, case: Case, random: np.random.Generator) -> None:
        self._case, self._random = case, random
        self.stored: list[Any] = []
        self.num_bytes = 0.0

    def add(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """The names of one weight's tensors."""
        *rows, columns = shape
        case, blocks = self._case, columns // self._case.block
        parts = {
            name: self._random.integers(0, 256, (*rows, columns * case.bits // 8), np.uint8),
            f"{name}.scales": self._random.uniform(0.001, 0.02, (*rows, blocks)).astype(np.float32),
        }
        if case.kernel == "linear":
            parts[name] = parts[name].reshape(*rows, blocks, -1)
        if case.zero_points:
            num_bytes = -(-blocks * case.bits // 8)
            parts[f"{name}.zero_points"] = self._random.integers(0, 256, (*rows, num_bytes), np.uint8)
        self.stored += [numpy_helper.from_array(array, key) for key, array in parts.items()]
        self.num_bytes += sum(array.nbytes for array in parts.values())
        return list(parts)


def _linear(case: Case, random: np.random.Generator) -> Graph:
    copies = -(-_UNCACHED_BYTES * 8 // (ROWS * COLUMNS * case.bits)) if case.tokens <= 8 else 1
    weights = _Weights(case, random)
    names = [weights.add(f"weight_{i}", (ROWS, COLUMNS)) for i in range(copies)]
    own: dict[str, Any] = {"bits": case.bits, "accuracy_level": case.level}
    theirs = {**own, "N": ROWS, "K": COLUMNS, "block_size": case.block}
    op_type = "AffineLinear" if case.zero_points else "QuantizedLinear"
    nodes = (
        [helper.make_node(op_type, ["x", *name], [f"y{i}"], domain=DOMAIN, **own) for i, name in enumerate(names)],
        [
            helper.make_node("MatMulNBits", ["x", *name], [f"y{i}"], domain="com.microsoft", **theirs)
            for i, name in enumerate(names)
        ],
    )
    first, second = (_model(each, ["x"], weights.stored) for each in nodes)
    return Graph(first, second, copies, weights.num_bytes / copies)


def _experts(case: Case, random: np.random.Generator) -> Graph:
    weights = _Weights(case, random)
    gate_up = weights.add("gate_up", (NUM_EXPERTS, 2 * INNER, HIDDEN))
    down = weights.add("down", (NUM_EXPERTS, HIDDEN, INNER))
    own: dict[str, Any] = {
        "top_k": TOP_K,
        "gate_up_bits": case.bits,
        "down_bits": case.bits,
        "accuracy_level": case.level,
    }
    theirs: dict[str, Any] = {
        "k": TOP_K,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 1,
        "expert_weight_bits": case.bits,
        "fc2_expert_weight_bits": case.bits,
        "block_size": case.block,
        "accuracy_level": case.level,
    }
    inputs = ["x", "logits", *gate_up[:2], "", *down[:2]]
    inputs += ["", "", "", "", gate_up[2], down[2]] if case.zero_points else []
    op_type = "AffineExperts" if case.zero_points else "QuantizedExperts"
    first = helper.make_node(op_type, ["x", "logits", *gate_up, *down], ["y0"], domain=DOMAIN, **own)
    second = helper.make_node("QMoE", inputs, ["y0"], domain="com.microsoft", **theirs)
    models = [_model([node], ["x", "logits"], weights.stored) for node in (first, second)]
    return Graph(models[0], models[1], 1, weights.num_bytes)


def _model(nodes: list[Any], inputs: list[str], stored: list[Any]) -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(len(nodes))]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "kernels", values, outputs, stored), opset_imports=opsets, ir_version=10
    )
    serialized: bytes = model.SerializeToString()
    return serialized


def _session(model: bytes, library: NativeLibrary, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    library.register(options)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
