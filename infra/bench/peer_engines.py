"""One measured engine: it loads its model, prints "ready", and measures one request for every line on stdin.

    python -m infra.bench.peer_engines {qwonnx,genai,genai-default} MODEL_FOLDER THREADS

Each answer is a line of JSON with seconds: `prompt`, to the first token, and `decode`, for the tokens after it.
Both engines get the same random prompt, choose greedily, and do not stop early.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from infra.bench.peers import DECODE_TOKENS, PROMPT_TOKENS

_SMALLEST_VOCABULARY = 1024
Request = Callable[[], tuple[float, float]]


def main() -> None:
    name, folder, threads = sys.argv[1:]
    engine = qwonnx if name == "qwonnx" else genai
    request = engine(Path(folder), None if name == "genai-default" else int(threads))
    print("ready", flush=True)
    for _ in sys.stdin:
        prompt_s, decode_s = request()
        print(json.dumps({"prompt": prompt_s, "decode": decode_s}), flush=True)


def _prompt() -> list[int]:
    ids: list[int] = np.random.default_rng(1).integers(0, _SMALLEST_VOCABULARY, PROMPT_TOKENS).tolist()
    return ids


def qwonnx(folder: Path, threads: int | None) -> Request:
    """The engine as users run it: its thread, its scheduler, its detokenizer."""
    from qwonnx.runtime import Engine, RuntimeSettings, SamplingParams

    engine = Engine.open(folder, RuntimeSettings(num_threads=threads, max_model_len=PROMPT_TOKENS + DECODE_TOKENS + 1))
    params = SamplingParams(temperature=0.0, max_tokens=DECODE_TOKENS + 1, ignore_eos=True)
    prompt = _prompt()

    def request() -> tuple[float, float]:
        start = time.perf_counter()
        times = [time.perf_counter() for _ in engine.generate(prompt, params)]
        assert len(times) == DECODE_TOKENS + 1, f"{len(times)} outputs"
        return times[0] - start, times[-1] - times[0]

    return request


def genai(folder: Path, threads: int | None) -> Request:
    """onnxruntime-genai's own loop, as its examples write it, without detokenizing; threads None: its default."""
    import onnxruntime_genai

    config = onnxruntime_genai.Config(str(folder))
    if threads is not None:
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = onnxruntime_genai.Model(config)
    length = PROMPT_TOKENS + DECODE_TOKENS + 1
    prompt = np.array(_prompt(), np.int32)

    def request() -> tuple[float, float]:
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = onnxruntime_genai.Generator(model, params)
        start = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(DECODE_TOKENS):
            generator.generate_next_token()
        return first - start, time.perf_counter() - first

    return request


if __name__ == "__main__":
    main()
