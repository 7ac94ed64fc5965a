"""One very long prompt, in one process: seconds and processor time by position, and memory.

    python -m infra.bench.long_prompt [--tokens 1000000] [--kv float32] [--kernels native] [--threads 2]

The model is the tests' tiny one with experts (four layers, one of them full attention with four query heads of 32),
exported here with YaRN for 1,048,576 positions and int4 weights. The prompt is random tokens, read in chunks of 512;
then some tokens are decoded at its end. Processor time is of the process, so other work on the machine disturbs it
little. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from infra.bench.plan_memory import read_maps
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.checkpoints import write_tiny
from tests.checkpoints.config_json import TINY_TEXT
from tests.checkpoints.tokenizer import NUM_BASE_TOKENS

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262_144}
_CHUNK = 512
_NUM_MARKS = 10


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--kv", choices=("float32", "int8", "int4"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kernels", choices=("native", "onnxruntime"), default="native")
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="qwonnx-long-prompt-") as folder:
        artifact = _artifact(Path(folder), options.kv)
        print(json.dumps(measure(artifact, options)))


def measure(artifact: Path, options: argparse.Namespace) -> dict[str, object]:
    """Read the prompt, print a line for each tenth of it, and return the numbers."""
    settings = RuntimeSettings(
        num_threads=options.threads,
        max_num_seqs=1,
        max_num_batched_tokens=_CHUNK,
        max_model_len=options.tokens + options.new_tokens,
        prefix_cache_bytes=0,
        kernels=options.kernels,
    )
    prompt = np.random.default_rng(0).integers(0, NUM_BASE_TOKENS, options.tokens).tolist()
    outputs: list[RequestOutput] = []
    marks: list[dict[str, float]] = []
    with Engine.open(artifact, settings) as engine:
        params = SamplingParams(temperature=0, max_tokens=options.new_tokens, ignore_eos=True)
        engine.submit(prompt, params, outputs.append)
        started, processor = time.perf_counter(), time.process_time()
        num_read = 0
        while not outputs:
            engine.step()
            num_read = min(num_read + _CHUNK, options.tokens)
            if num_read * _NUM_MARKS // options.tokens > len(marks):
                marks.append(
                    {
                        "tokens": num_read,
                        "seconds": round(time.perf_counter() - started, 1),
                        "processor_s": round(time.process_time() - processor, 1),
                    }
                )
                print(*(f"{value:,}" for value in marks[-1].values()), flush=True)
        assert num_read == options.tokens, "the engine read other chunks than this benchmark counted"
        first, first_processor = time.perf_counter(), time.process_time()
        while outputs[-1].finish_reason is None:
            engine.step()
        decoding = time.perf_counter() - first, time.process_time() - first_processor
        memory = read_maps(os.getpid())
    num_decoded = sum(len(output.token_ids) for output in outputs)
    assert num_decoded == options.new_tokens, outputs[-1]
    return {
        "benchmark": "long_prompt",
        "tokens": options.tokens,
        "kv": options.kv,
        "kernels": options.kernels,
        "threads": options.threads,
        "marks": marks,
        "decode_ms": round(1e3 * decoding[0] / (num_decoded - 1), 2),
        "decode_processor_ms": round(1e3 * decoding[1] / (num_decoded - 1), 2),
        "anonymous_bytes": memory.anonymous,
        "resident_bytes": memory.resident,
    }


def _artifact(folder: Path, kv: str) -> Path:
    overrides = {
        "rope_parameters": TINY_TEXT["rope_parameters"] | _YARN,
        "max_position_embeddings": 1 << 20,
    }
    checkpoint = write_tiny(folder / "checkpoint", text_overrides=overrides)
    artifact = folder / "artifact"
    export_checkpoint(checkpoint, artifact, ExportOptions(weights="int4", kv=kv))
    return artifact


if __name__ == "__main__":
    main()
