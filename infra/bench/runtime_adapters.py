"""Requests of several adapters in one batch, beside the model without any: tokens a second in turn.

    python -m infra.bench.runtime_adapters BASE WITH_SLOTS [--rank 16] [--adapters 4] [--rows 8] [--rounds 5]

BASE is an artifact, and WITH_SLOTS the same checkpoint exported with --runtime-adapters all. The adapters are random
numbers of small size for all targets: what a step costs does not depend on them. Each round decodes as many tokens in
three ways: by BASE, by WITH_SLOTS without an adapter, and by WITH_SLOTS with the adapters, which take turns over the
rows. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from qwonnx.runtime import Engine, FinishReason, RuntimeSettings, SamplingParams
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.engine.request import RequestOutput


def write_adapter(artifact: Path, folder: Path, rank: int, seed: int, size: float = 0.01) -> Path:
    """An adapter as peft saves it, for every target of an artifact, of random numbers of this size in bfloat16."""
    random = np.random.default_rng(seed)
    tensors = {}
    for target in open_artifact(artifact).manifest.adapter_targets:
        module = f"base_model.model.model.{target.module}"
        for part, shape in (("A", (rank, target.num_inputs)), ("B", (target.num_outputs, rank))):
            tensors[f"{module}.lora_{part}.weight"] = random.normal(0, size, shape).astype(ml_dtypes.bfloat16)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def tokens_per_second(engine: Engine, names: list[str], num_tokens: int, prompt: list[int]) -> float:
    """Of decoding alone: from the moment when every row has its first token."""
    params = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    begun: set[str] = set()

    def receive(output: RequestOutput) -> None:
        assert output.finish_reason in (None, FinishReason.LENGTH), output.error
        if output.num_generated_tokens:
            begun.add(output.request_id)

    for name in names:
        engine.submit(prompt, params, receive, adapter=name)
    while len(begun) < len(names):
        engine.step()
    before, started = engine.metrics().generated_tokens, time.perf_counter()
    while engine.num_live_requests:
        engine.step()
    return (engine.metrics().generated_tokens - before) / (time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.bench.runtime_adapters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("base", type=Path, help="an artifact without slots")
    parser.add_argument("with_slots", type=Path, help="the same with --runtime-adapters all")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args(arguments)
    settings = RuntimeSettings(
        num_threads=options.threads, max_num_seqs=options.rows, max_model_len=512, prefix_cache_bytes=0
    )
    prompt = list(range(100, 132))
    found: dict[str, list[float]] = {"base": [], "slots": [], "adapters": []}
    with TemporaryDirectory() as folder:
        names = [f"adapter-{number}" for number in range(options.adapters)]
        paths = [
            write_adapter(options.with_slots, Path(folder, name), options.rank, seed) for seed, name in enumerate(names)
        ]
        given = tuple(f"{name}={path}" for name, path in zip(names, paths, strict=True))
        with_adapters = replace(settings, adapters=given, adapter_bytes=8 << 30)
        turns = [names[row % len(names)] for row in range(options.rows)]
        with Engine.open(options.base, settings) as base, Engine.open(options.with_slots, with_adapters) as slots:
            print(f"kernels: {slots.kernels.name}", flush=True)
            cases = {
                "base": (base, [""] * options.rows),
                "slots": (slots, [""] * options.rows),
                "adapters": (slots, turns),
            }
            for engine, asked in cases.values():
                tokens_per_second(engine, asked, 4, prompt)  # weights and adapters come into memory
            for _ in range(options.rounds):
                for name, (engine, asked) in cases.items():
                    found[name].append(tokens_per_second(engine, asked, options.tokens, prompt))
                print({name: round(values[-1], 1) for name, values in found.items()}, flush=True)
    ratios = {
        name: [value / other for value, other in zip(found[name], found["base"], strict=True)]
        for name in ("slots", "adapters")
    }
    report = {
        "benchmark": "runtime adapters",
        "rank": options.rank,
        "adapters": options.adapters,
        "rows": options.rows,
        "tokens_per_second": {name: round(statistics.median(values), 1) for name, values in found.items()},
        **{
            f"{name}_over_base": {
                "median": round(statistics.median(values), 3),
                "lowest": round(min(values), 3),
                "highest": round(max(values), 3),
            }
            for name, values in ratios.items()
        },
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
