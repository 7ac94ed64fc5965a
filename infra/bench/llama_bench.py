"""The model alone beside llama.cpp's llama-bench, in alternating processes: a prompt, and decoding after some tokens.

    python -m infra.bench.llama_bench ARTIFACT --llama-bench PROGRAM --gguf FILE
                                      [--prompt 512] [--decode 64] [--depths 0 8192] [--rounds 5] [--threads 2]

Neither side samples or writes text. llama-bench reads a prompt to reach a depth; here the cache is filled with random
keys and values, which cost attention the same. --prompt 0 or --decode 0 leaves that part out. The last line is JSON:
tokens per second, and ratios round by round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infra.bench.measured import ratio_summary, report, run_task
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.cache.rows import is_growing
from qwonnx.runtime.model.runner import ModelRunner
from qwonnx.runtime.model.session import Session
from qwonnx.runtime.scheduling.sequence import Sequence as TokenSequence
from qwonnx.runtime.scheduling.sequence import StepPlan
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.cache.row_content import PythonGraph

_CHUNK = 512
_WARM_STEPS = 3
_SMALLEST_VOCABULARY = 1024


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--llama-bench", type=Path, help="the program; without it only qwonnx is measured")
    parser.add_argument("--gguf", type=Path, help="the same checkpoint for it")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--depths", type=int, nargs="+", default=[0], help="tokens in the cache before the decoding")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kernels", choices=("native", "onnxruntime"), default="native")
    parser.add_argument("--task", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task:
        report({"all": 0.0}, measure(options))
        return
    if (options.llama_bench is None) != (options.gguf is None):
        parser.error("--llama-bench and --gguf go together")
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    given = list(sys.argv[1:] if arguments is None else arguments)
    for number in range(options.rounds):
        ours.append(run_task("infra.bench.llama_bench", [*given, "--task"]).facts)
        print(f"round {number + 1} qwonnx   ", _shown(ours[-1]), flush=True)
        if options.llama_bench is not None:
            theirs.append(_llama_bench(options))
            print(f"round {number + 1} llama.cpp", _shown(theirs[-1]), flush=True)
    print(json.dumps({"benchmark": "llama_bench", "arguments": given, **_summary(ours, theirs)}))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Tokens per second of this process: "prompt", and "decode at" each depth."""
    artifact = open_artifact(options.artifact)
    spec, vocab_size = artifact.decoder, artifact.manifest.model.vocab_size
    settings = RuntimeSettings(num_threads=options.threads, kernels=options.kernels)
    session = Session(artifact.file(spec.file), settings, spec.native_operators)
    length = max(options.prompt, max(options.depths) + options.decode + _WARM_STEPS) + 1
    cache = HybridCache(spec.states, 1, length)
    runner = ModelRunner(session, spec.states, cache, 1, _CHUNK, vocab_size)
    # A sequence with no computed tokens begins its row; a deeper one finds it filled.
    prompt = np.random.default_rng(1).integers(0, min(_SMALLEST_VOCABULARY, vocab_size), length).tolist()
    rates: dict[str, float] = {}

    def read(num_tokens: int) -> None:
        cache.release(0)
        sequence = TokenSequence("prompt", prompt[:num_tokens], num_tokens)
        for start in range(0, num_tokens, _CHUNK):
            width = min(_CHUNK, num_tokens - start)
            runner.run(StepPlan(0, (sequence,), width, wants_logits=start + width == num_tokens))
            sequence.num_computed += width

    def decode(depth: int, num_tokens: int) -> float:
        cache.release(0)
        if depth:
            _fill(cache, spec.states, depth)
        sequence = TokenSequence("answer", prompt[: depth + _WARM_STEPS + num_tokens], depth)
        sequence.num_computed = depth
        for number in range(_WARM_STEPS + num_tokens):
            if number == _WARM_STEPS:
                began = time.perf_counter()
            runner.run(StepPlan(0, (sequence,), 1, wants_logits=True))
            sequence.num_computed += 1
        return time.perf_counter() - began

    read(min(length - 1, _CHUNK))  # maps the pages of all experts
    if options.prompt:
        began = time.perf_counter()
        read(options.prompt)
        rates["prompt"] = options.prompt / (time.perf_counter() - began)
    for depth in options.depths if options.decode else ():
        rates[f"decode at {depth}"] = options.decode / decode(depth, options.decode)
    return rates


def _fill(cache: HybridCache, states: Sequence[StateSpec], num_tokens: int) -> None:
    """Give the first row so many random keys and values."""
    cache.begin(0)
    cache.advance(0, num_tokens)
    rows, random = PythonGraph(), np.random.default_rng(2)
    cache.buffers.bind(rows, 0, 1)
    for state in filter(is_growing, states):
        array = rows.inputs[state.past][0, :, :num_tokens]
        if array.dtype == np.float32:
            array[:] = random.standard_normal(array.shape, np.float32)
        else:
            array[:] = random.integers(0, 127, array.shape, array.dtype)


def _llama_bench(options: argparse.Namespace) -> dict[str, float]:
    command = [str(options.llama_bench), "-m", str(options.gguf), "-t", str(options.threads), "-r", "1", "-o", "json"]
    rates: dict[str, float] = {}
    if options.prompt:
        (found,) = _json([*command, "-p", str(options.prompt), "-n", "0"])
        rates["prompt"] = found["avg_ts"]
    if options.decode:
        depths = ",".join(map(str, options.depths))
        for found in _json([*command, "-p", "0", "-n", str(options.decode), "-d", depths]):
            rates[f"decode at {found['n_depth']}"] = found["avg_ts"]
    return rates


def _json(command: list[str]) -> list[dict[str, float]]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} fails: {done.stderr[-1000:]}")
    found: list[dict[str, float]] = json.loads(done.stdout)
    return found


def _shown(rates: dict[str, float]) -> str:
    return ", ".join(f"{name} {rate:.1f} tokens/s" for name, rate in rates.items())


def _summary(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, object]:
    def medians(runs: list[dict[str, float]]) -> dict[str, float]:
        return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}

    result: dict[str, object] = {"qwonnx": medians(ours)}
    if theirs:
        result["llama.cpp"] = medians(theirs)
        result["ratio"] = {
            name: ratio_summary([run[name] for run in ours], [run[name] for run in theirs]) for name in ours[0]
        }
    return result


if __name__ == "__main__":
    main()
