"""The native attention over a cache beside what the CPU target uses without it, in one process, taking turns.

    python -m infra.bench.native_attention [--threads 2] [--kv float32 int8 int4] [--positions 1024 8192 32768 131072]
                                           [--tokens 1] [--rows 1] [--heads 16 2 256] [--rounds 7]

One layer with the heads of Qwen3.5-35B-A3B (16 for queries, 2 for keys, 256 wide): --tokens new tokens at the end of a
cache of --positions, which is updated in place. One thread: processor time, the least of the rounds, which other work
on the machine disturbs little. More threads: elapsed time, on a quiet machine. Threads do not spin between runs,
because they would slow down what is measured next. Each round also reads the same buffers by numpy's maximum of bytes
with as many threads, to show what memory allows. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx

from qwonnx.runtime.native.library import NativeLibrary, native_library
from tests.export.operators.attention_graph import cpu_attention
from tests.runtime.native.attention import CACHES, DTYPES, KINDS, Arrays, attention_model, bind_in_place, session_of


@dataclass(frozen=True, slots=True)
class Case:
    """One step over a cache of one type."""

    kv: str
    positions: int  # of each row, after the step
    tokens: int
    rows: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def cache_bytes(self) -> int:
        """Of all rows, keys and values."""
        width = self.head_dim // 2 if self.kv == "int4" else self.head_dim
        item_bytes: int = np.dtype(DTYPES[self.kv]).itemsize
        return 2 * self.rows * self.num_kv_heads * self.positions * width * item_bytes


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kv", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--positions", type=int, nargs="+", default=[1024, 8192, 32768, 131072])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--heads", type=int, nargs=3, default=[16, 2, 256], help="query heads, key heads, their width")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    library = native_library()
    print(f"{library.instructions} kernels, {options.threads} threads")
    rows = []
    for tokens in options.tokens:
        for positions in options.positions:
            for kv in options.kv:
                case = Case(kv, positions + (tokens if tokens > 1 else 0), tokens, options.rows, *options.heads)
                rows.append(measure(case, library, options.threads, options.rounds))
    result = {"benchmark": "native_attention", "instructions": library.instructions, "threads": options.threads}
    print(json.dumps({**result, "rows": rows}))


def measure(case: Case, library: NativeLibrary, threads: int, rounds: int) -> dict[str, str | int | float]:
    """Milliseconds of both, and of reading the cache once: the least of the rounds."""
    arrays = _arrays(case)
    heads = {"num_heads": case.num_heads, "num_kv_heads": case.num_kv_heads, "head_dim": case.head_dim}
    steps: dict[str, Callable[[], object]] = {
        "own": _step(attention_model(case.kv, case.num_heads), library, arrays, threads),
        "theirs": _step(cpu_attention(case.kv, **heads), None, arrays, threads),
    }
    pool = ThreadPoolExecutor(threads)
    parts = [part for name in CACHES for part in np.array_split(arrays[name].reshape(-1).view(np.uint8), threads)]
    steps["read"] = lambda: [part.max() for part in parts] if threads == 1 else list(pool.map(np.max, parts))
    clock = time.thread_time if threads == 1 else time.perf_counter
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(rounds + 1):
        for name, step in steps.items():
            started = clock()
            step()
            best[name] = min(best[name], clock() - started)
    pool.shutdown()
    visible = case.tokens * (case.positions - case.tokens) + case.tokens * (case.tokens + 1) // 2
    operations = 4 * case.rows * case.num_heads * case.head_dim * visible
    row: dict[str, str | int | float] = {
        "kv": case.kv,
        "rows": case.rows,
        "tokens": case.tokens,
        "positions": case.positions,
        "own_ms": round(best["own"] * 1e3, 3),
        "onnxruntime_ms": round(best["theirs"] * 1e3, 3),
        "ratio": round(best["theirs"] / best["own"], 2),
        "gb_per_s": round(case.cache_bytes / best["own"] / 1e9, 1),
        "plain_read_gb_per_s": round(case.cache_bytes / best["read"] / 1e9, 1),
        "gflop_per_s": round(operations / best["own"] / 1e9),
    }
    print(
        f"{case.kv:8}{case.rows:3} rows, {case.tokens:4} tokens, {case.positions:7} positions: {row['own_ms']:10} ms, "
        f"onnxruntime {row['onnxruntime_ms']:10} ms, {row['ratio']:5} times; {row['gb_per_s']:5} GB/s "
        f"(plain read {row['plain_read_gb_per_s']:5}), {row['gflop_per_s']:4} GFLOP/s",
        flush=True,
    )
    return row


def _arrays(case: Case) -> Arrays:
    """Inputs of both. Caches repeat one random position, because time does not depend on values."""
    random = np.random.default_rng(0)
    width, kv_width = case.num_heads * case.head_dim, case.num_kv_heads * case.head_dim
    stored = case.head_dim // 2 if case.kv == "int4" else case.head_dim
    shape = (1, case.num_kv_heads, 1, case.head_dim)
    arrays: Arrays = {
        "query": random.standard_normal((case.rows, case.tokens, width), np.float32),
        "key": random.standard_normal((case.rows, case.tokens, kv_width), np.float32),
        "value": random.standard_normal((case.rows, case.tokens, kv_width), np.float32),
        "gate": random.standard_normal((case.rows, case.tokens, width), np.float32),
        "past_lengths": np.full(case.rows, case.positions - case.tokens, np.int64),
        "key_scale": np.full(shape, 0.02 if case.kv == "int8" else 0.3, np.float32),
        "value_scale": np.full(shape, 0.02 if case.kv == "int8" else 0.3, np.float32),
        "input_ids": np.zeros((case.rows, case.tokens), np.int64),
    }
    for name in CACHES:
        dtype = DTYPES[case.kv]
        arrays[name] = np.empty((case.rows, case.num_kv_heads, case.positions, stored), dtype)
        codes = random.integers(0, 256, stored, np.uint8)
        arrays[name][:] = random.standard_normal(stored, np.float32) if case.kv == "float32" else codes.view(dtype)
    return arrays


def _step(model: onnx.ModelProto, library: NativeLibrary | None, arrays: Arrays, threads: int) -> Callable[[], object]:
    """A call that runs the step over the arrays' caches, in place."""
    session = session_of(model, library, threads)
    attended = np.empty_like(arrays["query"])
    io = bind_in_place(session, arrays, attended)

    def run() -> object:
        session.run_with_iobinding(io)
        return attended  # which the binding does not keep alive

    return run


if __name__ == "__main__":
    main()
