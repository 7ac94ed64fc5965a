"""The time of a guide for each token, with the published vocabulary of 248,077 tokens, or in an artifact's decoding.

    python -m infra.bench.structured_output [--rounds 5]
    python -m infra.bench.structured_output ARTIFACT [--tokens 64] [--rounds 5] [--threads 2]

Without an artifact, the benchmark reads texts that follow a guide, token by token. `wait` is the time from a token to
its mask; a server spends it during the model's step. `sample` is the time of sampling with the mask, after the step,
and `sample_free` that of sampling from the whole vocabulary. With an artifact, free and bound answers take turns: it
reports seconds per token after the first, and the median of the ratios. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.sampling.grammar import GrammarCompiler
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.sampling.sampler import Sampler
from qwonnx.runtime.sampling.tool_grammar import tool_guide
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.checkpoints.published_tokenizer import published_tokenizer_json

_RECOMMENDED = SamplingParams(temperature=0.6, top_k=20, top_p=0.95, seed=0)
_PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"type": "integer"},
        "field": {"enum": ["mathematics", "physics", "poetry"]},
        "works": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "born", "field", "works"],
    "additionalProperties": False,
}
_TOOL: dict[str, Any] = {"type": "function", "function": {"name": "note", "strict": True, "parameters": _PERSON}}
_PERSON_TEXT = (
    '{"name": "Ada Lovelace", "born": 1815, "field": "mathematics", "works": ["Notes on the Analytical Engine", '
    '"Letters to her mother and to Charles Babbage, written over many years"]}'
)
_CASES: dict[str, tuple[Guide, str]] = {
    "schema": (Guide.json_schema(_PERSON), _PERSON_TEXT),
    "json_object": (Guide.json_object(), _PERSON_TEXT),
    "regex": (Guide.regex("[A-Z][a-z]+( [A-Za-z]+)*\\."), "Ada was the first to write down what a machine could do."),
    "tools": (
        tool_guide([_TOOL]),
        "I note what I know of her.\n\n<tool_call>\n<function=note>\n<parameter=name>\nAda Lovelace\n</parameter>\n"
        "<parameter=born>\n1815\n</parameter>\n<parameter=field>\nmathematics\n</parameter>\n<parameter=works>\n"
        '["Notes"]\n</parameter>\n</function>\n</tool_call>',
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.artifact is None:
        result = _of_vocabulary(options.rounds)
    else:
        result = _of_artifact(options.artifact, options.tokens, options.rounds, options.threads)
    print(json.dumps({"benchmark": "structured_output", "rounds": options.rounds, **result}))


def _of_vocabulary(rounds: int) -> dict[str, Any]:
    tokenizer = Tokenizer(published_tokenizer_json())
    ends = [tokenizer.encode(name)[0] for name in ("<|im_end|>", "<|endoftext|>")]
    compiler = GrammarCompiler(tokenizer, ends, tokenizer.num_tokens)
    logits = np.random.default_rng(0).standard_normal(tokenizer.num_tokens).astype(np.float32) * 3
    began = time.perf_counter()
    compiler.compile(Guide.regex("a")).result()
    first_guide = time.perf_counter() - began
    cases = {name: _of_case(compiler, tokenizer, guide, text, logits, rounds) for name, (guide, text) in _CASES.items()}
    compiler.close()
    for name, case in cases.items():
        print(f"{name:12} " + "  ".join(f"{what} {value:g}" for what, value in case.items()))
    return {"first_guide_seconds": round(first_guide, 2), "cases": cases}


def _of_case(
    compiler: GrammarCompiler, tokenizer: Tokenizer, guide: Guide, text: str, logits: Any, rounds: int
) -> dict[str, float]:
    """Medians in microseconds, and the longest wait."""
    began = time.perf_counter()
    compiler.compile(guide).result()
    compiled = time.perf_counter() - began
    seconds: dict[str, list[float]] = {"wait": [], "sample": [], "sample_free": [], "accept": []}
    for _ in range(rounds):
        constraint = compiler.constraint(guide, ignore_eos=False)
        constraint.begin()
        samplers = [Sampler(_RECOMMENDED, (), tokenizer.num_tokens) for _ in range(2)]
        for token in tokenizer.encode(text):
            marks = [time.perf_counter()]
            allowed = constraint.allowed()
            marks.append(time.perf_counter())
            samplers[0].sample(logits, allowed)
            marks.append(time.perf_counter())
            samplers[1].sample(logits)
            marks.append(time.perf_counter())
            constraint.accept(token)
            marks.append(time.perf_counter())
            for values, taken in zip(seconds.values(), np.diff(marks), strict=True):
                values.append(float(taken))
            if constraint.is_complete:
                break
    found = {f"{name}_us": round(statistics.median(values) * 1e6, 1) for name, values in seconds.items()}
    return found | {"longest_wait_us": round(max(seconds["wait"]) * 1e6, 1), "compile_ms": round(compiled * 1e3, 1)}


def _of_artifact(artifact: Path, tokens: int, rounds: int, threads: int) -> dict[str, Any]:
    endless = Guide.json_schema({"type": "array", "items": _PERSON, "minItems": 100_000})
    settings = RuntimeSettings(
        num_threads=threads, max_num_seqs=1, max_model_len=tokens + 64, max_num_batched_tokens=64, prefix_cache_bytes=0
    )
    seconds: dict[str, list[float]] = {"free": [], "bound": []}
    with Engine.open(artifact, settings) as engine:
        prompt = engine.tokenizer.encode("People of science, as JSON: ")
        engine.compile_guide(endless).result()
        engine.warm_up()
        for number in range(rounds + 1):
            for name, guide in (("free", None), ("bound", endless)):
                params = SamplingParams(
                    temperature=0.6, top_k=20, top_p=0.95, seed=number, max_tokens=tokens, ignore_eos=True, guide=guide
                )
                times = [time.perf_counter() for _ in engine.generate(prompt, params)]
                if number:  # the first round warms up
                    seconds[name].append((times[-1] - times[0]) / (len(times) - 1))
    medians = {name: round(statistics.median(values), 6) for name, values in seconds.items()}
    ratios = [bound / free for bound, free in zip(seconds["bound"], seconds["free"], strict=True)]
    for name, median in medians.items():
        print(f"{name:6} {median * 1e3:8.2f} ms a token")
    return {
        "tokens": tokens,
        "threads": threads,
        "seconds_a_token": medians,
        "ratio": round(statistics.median(ratios), 4),
    }


if __name__ == "__main__":
    main()
