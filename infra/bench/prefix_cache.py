"""Time to the first token of a chat's later turns: with the prefix cache, and when everything is read again.

    python -m infra.bench.prefix_cache ARTIFACT [--system-tokens 4000] [--new-tokens 64] [--rounds 5] [--threads 2]

Each round sends in turn: a prompt with a new beginning (the system's text, of random tokens); one with the same
beginning and other new tokens, which continues from a snapshot; the new tokens alone. It also sends the first prompt to
an engine without a cache, which shows the cost of keeping snapshots. The results are medians. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings

_PARAMS = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--system-tokens", type=int, default=4000)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    length = options.system_tokens + options.new_tokens + 2
    settings = RuntimeSettings(num_threads=options.threads, max_num_seqs=1, max_model_len=length)
    seconds: dict[str, list[float]] = {"no cache": [], "first turn": [], "second turn": [], "new tokens alone": []}
    random = np.random.default_rng(0)
    with (
        Engine.open(options.artifact, settings) as engine,
        Engine.open(options.artifact, replace(settings, prefix_cache_bytes=0)) as plain,
    ):
        engine.warm_up()
        plain.warm_up()

        def tokens(count: int) -> list[int]:
            drawn: list[int] = random.integers(0, engine.tokenizer.num_tokens, count).tolist()
            return drawn

        for _ in range(options.rounds):
            system, at = tokens(options.system_tokens), [options.system_tokens]
            prompt = system + tokens(options.new_tokens)
            seconds["no cache"].append(_seconds(plain, prompt, [], 0))
            seconds["first turn"].append(_seconds(engine, prompt, at, 0))
            seconds["second turn"].append(_seconds(engine, system + tokens(options.new_tokens), at, at[0]))
            seconds["new tokens alone"].append(_seconds(engine, tokens(options.new_tokens), [], 0))
        account = engine.prefix_account()
    medians = {name: round(statistics.median(values), 4) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:18} {median:8.3f} s")
    result = {
        "benchmark": "prefix_cache",
        "system_tokens": options.system_tokens,
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "threads": options.threads,
        "seconds_to_first_token": medians,
        "snapshot_bytes": account.used_bytes // max(1, account.num_snapshots),
        "second_turn_over_new_tokens_alone": round(medians["second turn"] / medians["new tokens alone"], 3),
        "first_turn_over_no_cache": round(medians["first turn"] / medians["no cache"], 3),
    }
    print(json.dumps(result))


def _seconds(engine: Engine, prompt: list[int], snapshot_at: list[int], expected: int) -> float:
    """Seconds to the first token; `expected` tokens of the prompt must come from the cache."""
    outputs: list[RequestOutput] = []
    began = time.perf_counter()
    engine.submit(prompt, _PARAMS, outputs.append, snapshot_at=snapshot_at)
    while not outputs:
        time.sleep(0.0002)
    seconds = time.perf_counter() - began
    assert outputs[-1].num_cached_tokens == expected, outputs[-1]
    return seconds


if __name__ == "__main__":
    main()
