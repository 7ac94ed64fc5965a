"""The time of a step in each kernel of one artifact, from ONNX Runtime's own profiler.

    python -m infra.bench.step_profile ARTIFACT [--threads 2] [--prompt-tokens 512] [--decode-tokens 64] [--rounds 5]
        [--kernels onnxruntime]

Runs chunks of a prompt and then single tokens on the decoder's session alone, states bound in place as the runtime
binds them, and adds up the time inside each kind of kernel. The rest of a step is the time between kernels. Every
engine on these kernels needs the time of the matrix products (MatMulNBits, QMoE, or ours): the ratio of another
engine's whole step to this time bounds the speed-up that a better graph could give. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.cache.host_buffers import HostBinding
from qwonnx.runtime.native.choice import choose_kernels
from qwonnx.runtime.native.kernels import Kernels

_PRODUCTS = (
    *("MatMulNBits", "QMoE", "MatMul", "FusedMatMul", "MoE"),
    *("QuantizedLinear", "AffineLinear", "QuantizedExperts", "AffineExperts", "QuantizedMixture", "AffineMixture"),
)
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Step:
    """One run of the decoder: microseconds in all, and in each kind of kernel."""

    total_us: float
    kernels_us: dict[str, float]


class Decoder:
    """The decoder's session with one sequence's states, profiled."""

    def __init__(self, artifact: Artifact, threads: int, max_model_len: int, prefix: Path, kernels: Kernels) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(prefix)
        choice = choose_kernels(kernels, artifact.decoder.native_operators, ort.SessionOptions)
        if choice.library:
            choice.library.register(options)
        print(f"kernels: {choice.name}")
        self.session = ort.InferenceSession(artifact.file("decoder.onnx"), options, providers=["CPUExecutionProvider"])
        sizes = {"batch": 1, "max_model_len": max_model_len}
        self._states = {
            state: np.zeros(
                [size if isinstance(size, int) else sizes[size] for size in state.shape], np.dtype(state.dtype)
            )
            for state in artifact.decoder.states
        }
        self._vocab_size = artifact.manifest.model.vocab_size
        self._length = 0

    def start_over(self) -> None:
        self._length = 0

    def run(self, token_ids: np.ndarray) -> None:
        """One step over token_ids [num_tokens], with logits for the last."""
        num_tokens = len(token_ids)
        positions = np.arange(self._length, self._length + num_tokens, dtype=np.int64)
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", token_ids[None])
        binding.bind_cpu_input("position_ids", np.broadcast_to(positions, (3, 1, num_tokens)).copy())
        binding.bind_cpu_input("past_lengths", np.array([self._length], np.int64))
        binding.bind_cpu_input("logit_positions", np.array([num_tokens - 1], np.int64))
        for spec, buffer in self._states.items():
            HostBinding(binding).bind_input(spec.past, buffer)
            HostBinding(binding).bind_output(spec.present, buffer)
        binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding)
        self._length += num_tokens


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kernels", type=Kernels, choices=list(Kernels), default=Kernels.AUTO)
    options = parser.parse_args(arguments)
    artifact = open_artifact(options.artifact)
    with tempfile.TemporaryDirectory() as folder:
        steps = profile(artifact, options, Path(folder))
    per_round = 1 + options.decode_tokens
    # The first round warms up: buffers are touched, the arena grows.
    prompts = [step for index, step in enumerate(steps) if index % per_round == 0 and index >= per_round]
    decodes = [step for index, step in enumerate(steps) if index % per_round and index >= per_round]
    report = {"prompt": _summary("prompt", prompts), "decode": _summary("decode", decodes)}
    print(
        json.dumps(
            {
                "benchmark": "step_profile",
                "kernels": options.kernels,
                "threads": options.threads,
                "rounds": options.rounds,
                **report,
            }
        )
    )


def profile(artifact: Artifact, options: argparse.Namespace, folder: Path) -> list[Step]:
    """A prompt and decode_tokens single tokens for every round, and one more round to warm up."""
    length = options.prompt_tokens + options.decode_tokens
    decoder = Decoder(artifact, options.threads, length, folder / "profile", options.kernels)
    generator = np.random.default_rng(1)
    for _ in range(options.rounds + 1):
        decoder.start_over()
        decoder.run(generator.integers(0, artifact.manifest.model.vocab_size, options.prompt_tokens))
        for token_id in generator.integers(0, artifact.manifest.model.vocab_size, (options.decode_tokens, 1)):
            decoder.run(token_id)
    return steps(json.loads(Path(decoder.session.end_profiling()).read_text(encoding="utf-8")))


def steps(events: list[dict[str, Any]]) -> list[Step]:
    """One entry for each run, from the profiler's events: kernels end before their run."""
    steps: list[Step] = []
    kernels: defaultdict[str, float] = defaultdict(float)
    for event in sorted(events, key=lambda event: float(event["ts"]) + float(event["dur"])):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            kernels[event["args"]["op_name"]] += event["dur"]
        elif event["name"] == "model_run":
            steps.append(Step(event["dur"], dict(kernels)))
            kernels.clear()
    return steps


def _summary(name: str, steps: list[Step]) -> dict[str, float]:
    """Medians in milliseconds, printed as a table and returned: whole step, matrix products, share of each kernel."""
    total = statistics.median(step.total_us for step in steps)
    kernels = {
        op: statistics.median(step.kernels_us.get(op, 0.0) for step in steps)
        for op in sorted({op for step in steps for op in step.kernels_us})
    }
    print(f"{name}: {total / 1e3:.2f} ms a step, medians of {len(steps)}")
    for op, spent in sorted(kernels.items(), key=lambda item: -item[1])[:_SHOWN]:
        print(f"  {op:26} {spent / 1e3:8.3f} ms {spent / total:6.1%}")
    products = statistics.median(sum(step.kernels_us.get(op, 0.0) for op in _PRODUCTS) for step in steps)
    return {"step_ms": round(total / 1e3, 3), "matrix_products_ms": round(products / 1e3, 3)}


if __name__ == "__main__":
    main()
