"""A model that is larger than its memory: answers, tokens a second, and what is read, beside the same in memory.

    python -m infra.bench.larger_than_memory ARTIFACT [--share 0.6] [--rounds 3] [--questions 24] [--prompts 4]
        [--llama-bench PROGRAM --gguf FILE]

The limit is a share of the artifact's bytes, for the whole process. Ways, each in a process of its own, in turn:

    memory        no limit, all weights in memory
    limit         `memory_bytes`: the process itself keeps to the limit; the rest of the machine's memory stays free
    group         a control group with this limit, which the engine finds by itself
    group, plain  the same group, and the system alone decides what stays (`memory_bytes` 0)

The last two need the right to make control groups. Without --questions prompts are random tokens; with it they are
held-out questions of the trained miniature, whose experts can be widened (infra.bench.widened_checkpoint). Before every
run with a limit, the artifact's pages are dropped from the system's cache. llama.cpp maps its weights too, and runs in
the same group, with random tokens. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infra.bench.memory_group import memory_group
from infra.miniature import glossary, tool_calls
from infra.miniature.suite import write_suite
from qwonnx.export.evaluation.artifact_subject import ArtifactSubject
from qwonnx.export.evaluation.suite import read_suite
from qwonnx.runtime.artifact.file_names import is_weight_file
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.model import files as model_files
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings

MEMORY, LIMIT, GROUP, PLAIN = "memory", "limit", "group", "group, plain"
_SETTINGS = RuntimeSettings(
    max_num_seqs=1, max_model_len=4096, prefix_cache_bytes=0, cache_bytes=300_000_000, kernels="native"
)


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt; expected is the right answer, None for random tokens."""

    prompt: list[int]
    max_tokens: int
    expected: list[int] | None


@dataclass(frozen=True, slots=True)
class Measured:
    """One process: its answers, seconds of all requests, and what the engine read."""

    answers: list[list[int]]
    prompt_s: float
    decode_s: float
    decoded: int
    needed: int
    read: int
    read_bytes: int
    rss_peak: int
    limit_bytes: int | None
    major_faults: int
    system_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.task is not None:
        print(json.dumps(asdict(_run(options))))
        return
    artifact = open_artifact(options.artifact)
    num_bytes = sum(entry.size for entry in artifact.manifest.files if is_weight_file(entry.path))
    limit = int(options.share * num_bytes)
    with tempfile.TemporaryDirectory() as scratch, memory_group(limit) as group:
        requests = _questions(options, Path(scratch)) if options.questions else _random(options)
        tasks = Path(scratch) / "requests.json"
        tasks.write_text(json.dumps([asdict(request) for request in requests]))
        join = group.join if group else None
        # After all others: the weights may be in the system's cache by then.
        ways: dict[str, tuple[int | None, Callable[[], None] | None]] = {LIMIT: (limit, None)}
        if join is not None:
            ways |= {GROUP: (None, join), PLAIN: (0, join)}
        ways[MEMORY] = (0, None)
        found: dict[str, list[Measured]] = {way: [] for way in ways}
        peers: list[float] = []
        for number in range(options.rounds):
            for way, (memory, before) in ways.items():
                if way != MEMORY:
                    _drop(options.artifact.glob("*.bin"))
                elif number == 0:
                    _child(options, tasks, memory, before)  # brings the weights into memory
                found[way].append(_child(options, tasks, memory, before))
                print(f"{way:14} {_line(found[way][-1])}", flush=True)
            if options.llama_bench and options.gguf and join is not None:
                _drop([options.gguf])
                peers.append(_peer(options, join))
                print(f"{'llama.cpp':14} {peers[-1]:.2f} tokens/s", flush=True)
        peak = group.peak_bytes() if group else None
    expected = found[MEMORY][0].answers
    summary: dict[str, Any] = {
        way: {**_summary(runs), "same_answers": all(run.answers == expected for run in runs)}
        for way, runs in found.items()
    }
    right = [request.expected for request in requests]
    facts: dict[str, Any] = {"benchmark": "larger_than_memory", "weight_bytes": num_bytes, "limit_bytes": limit}
    if options.questions:
        facts |= {
            "questions": len(requests),
            "right": sum(answer[: len(wanted or [])] == wanted for answer, wanted in zip(expected, right, strict=True)),
        }
    if peers:
        facts["llama_cpp_tokens_per_s"] = round(statistics.median(peers), 2)
    print(json.dumps({**facts, "group_peak_bytes": peak, "ways": summary}))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--share", type=float, default=0.6, help="of the weights' bytes, for the whole process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=0, help="held-out questions of the miniature")
    parser.add_argument("--prompts", type=int, default=4, help="of random tokens, without --questions")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _random(options: argparse.Namespace) -> list[Request]:
    model = model_files.load(options.artifact)
    generator = random.Random(1)
    most = min(model.tokenizer.num_tokens, model.artifact.manifest.model.vocab_size)
    prompts = ([generator.randrange(most) for _ in range(options.prompt_tokens)] for _ in range(options.prompts))
    return [Request(prompt, options.new_tokens, None) for prompt in prompts]


def _questions(options: argparse.Namespace, scratch: Path) -> list[Request]:
    half = options.questions // 2
    write_suite(
        scratch / "suite.jsonl",
        [*glossary.held_out(options.questions - half, 1), *tool_calls.held_out(half, 1)],
    )
    subject = ArtifactSubject(options.artifact, RuntimeSettings())
    asked = [subject.prompt(question, None) for question in read_suite(scratch / "suite.jsonl").questions]
    return [Request(list(each.token_ids), 128, list(each.answer_ids)) for each in asked]


def _run(options: argparse.Namespace) -> Measured:
    """All requests, one after the other, in this process."""
    requests = [Request(**each) for each in json.loads(options.task.read_text())]
    settings = dataclasses.replace(_SETTINGS, num_threads=options.threads, memory_bytes=options.memory)
    answers, prompt_s, decode_s, decoded = [], 0.0, 0.0, 0
    with Engine.open(options.artifact, settings) as engine:
        engine.warm_up()
        before, usage = engine.metrics().experts, resource.getrusage(resource.RUSAGE_SELF)
        for request in requests:
            params = SamplingParams(temperature=0, max_tokens=request.max_tokens, ignore_eos=request.expected is None)
            times = [time.perf_counter()]
            tokens: list[int] = []
            for output in engine.generate(request.prompt, params):
                times.append(time.perf_counter())
                tokens += output.token_ids
            answers.append(tokens)
            prompt_s += times[1] - times[0]
            decode_s += times[-1] - times[1]
            decoded += len(tokens) - 1
        after, then = engine.metrics().experts, resource.getrusage(resource.RUSAGE_SELF)
    return Measured(
        answers=answers,
        prompt_s=prompt_s,
        decode_s=decode_s,
        decoded=decoded,
        needed=after.needed - before.needed,
        read=after.read - before.read,
        read_bytes=after.read_bytes - before.read_bytes,
        rss_peak=then.ru_maxrss * 1024,
        limit_bytes=after.limit_bytes,
        major_faults=then.ru_majflt - usage.ru_majflt,
        system_s=then.ru_stime - usage.ru_stime,
    )


def _child(options: argparse.Namespace, tasks: Path, memory: int | None, before: Callable[[], None] | None) -> Measured:
    command = [sys.executable, "-m", "infra.bench.larger_than_memory", str(options.artifact)]
    command += ["--task", str(tasks), "--threads", str(options.threads)]
    command += [] if memory is None else ["--memory", str(memory)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=before)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _peer(options: argparse.Namespace, join: Callable[[], None]) -> float:
    """Tokens a second of llama.cpp's own benchmark, decoding, with mapped weights that are not copied (repacked)."""
    command = [str(options.llama_bench), "-m", str(options.gguf), "-t", str(options.threads)]
    command += ["-p", "0", "-n", str(options.new_tokens), "-r", "1", "-lm", "mmap", "--repack", "0", "-o", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=join)
    return float(json.loads(done.stdout)[-1]["avg_ts"])


def _drop(paths: Any) -> None:
    """Take files from the system's cache, as far as no process maps them."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _line(run: Measured) -> str:
    return (
        f"prompts {run.prompt_s:.2f} s, {run.decoded / run.decode_s:.2f} tokens/s, {run.read} of {run.needed} experts"
        f" read ({run.read_bytes / 1e6:,.0f} MB), {run.major_faults} major faults, {run.system_s:.1f} s in the system,"
        f" peak {run.rss_peak / 1e6:,.0f} MB, experts' limit {(run.limit_bytes or 0) / 1e6:,.0f} MB"
    )


def _summary(runs: Sequence[Measured]) -> dict[str, float | int | None]:
    return {
        "tokens_per_s": round(statistics.median(run.decoded / run.decode_s for run in runs), 2),
        "prompts_s": round(statistics.median(run.prompt_s for run in runs), 3),
        "needed": runs[-1].needed,
        "read": runs[-1].read,
        "read_mb": round(runs[-1].read_bytes / 1e6),
        "peak_rss": max(run.rss_peak for run in runs),
        "experts_limit_bytes": runs[-1].limit_bytes,
        "major_faults": runs[-1].major_faults,
    }


if __name__ == "__main__":
    main()
