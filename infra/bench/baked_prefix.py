"""Time to the first token of a new process: with a baked prefix, and for the same chat without its system text.

    python -m infra.bench.baked_prefix ARTIFACT [--system-tokens 4000] [--rounds 5] [--threads 2] [--read]

Each round starts processes of these kinds, one after the other. Each opens the artifact, generates the warm-up token
of `qwonnx serve`, and then answers a chat:

    without     no system text
    baked       a baked system text of so many tokens; its file is in the page cache
    from disk   the same, after the file was dropped from the page cache (if the system complies)
    read        the same, not baked: all of it is read; only with --read, because it takes long

The artifact is not changed: the processes open a folder of hard links beside it. The results are medians. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from infra.bench.measured import Run, report, run_task
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.baking import bake
from qwonnx.runtime.cache.baked_prefixes import FOLDER
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import RequestOutput
from qwonnx.runtime.model import files as model_files
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.chat_prompt import SystemPrompt, render_chat, system_beginning

_QUESTION = {"role": "user", "content": "Which of the rules above matters most when a customer is in a hurry, and why?"}
_STAGES = ("open", "warm up", "first token")
_PARAMS = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.task is not None:
        _answer(options)
        return
    with tempfile.TemporaryDirectory(dir=options.artifact.parent, prefix=".baked-prefix-") as scratch:
        print(json.dumps(measure(options, Path(scratch))))


def measure(options: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Run the rounds, print a summary, and return the numbers."""
    plain, baked = (_linked(options.artifact, scratch / name) for name in ("plain", "baked"))
    text = _system_text(options.artifact, options.system_tokens)
    (scratch / "system.txt").write_text(text, encoding="utf-8")
    began = time.perf_counter()
    prompt = SystemPrompt([{"role": "system", "content": text}], [])
    (prefix,) = bake(baked, [prompt], RuntimeSettings(num_threads=options.threads))
    baking = time.perf_counter() - began

    kinds = {"without": (plain, 0), "baked": (baked, prefix.num_tokens), "from disk": (baked, prefix.num_tokens)}
    if options.read:
        kinds["read"] = (plain, 0)
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind, (folder, expected) in kinds.items():
            if kind == "from disk":
                _drop_from_page_cache(prefix.path)
            given = ["--threads", str(options.threads), "--expected", str(expected)]
            if kind != "without":
                given += ["--system", str(scratch / "system.txt")]
            runs[kind].append(run_task("infra.bench.baked_prefix", [str(folder), "--task", "answer", *given]))
    medians = {
        kind: {stage: round(statistics.median(run.stages[stage] for run in each), 4) for stage in _STAGES}
        for kind, each in runs.items()
    }
    for kind, stages in medians.items():
        print(f"{kind:10}", ", ".join(f"{stage} {seconds:.3f} s" for stage, seconds in stages.items()))
    without, with_it = medians["without"], medians["baked"]
    return {
        "benchmark": "baked_prefix",
        "system_tokens": prefix.num_tokens,
        "prefix_bytes": prefix.num_bytes,
        "baking_s": round(baking, 2),
        "rounds": options.rounds,
        "threads": options.threads,
        "seconds": medians,
        "first_token_over_without": round(with_it["first token"] / without["first token"], 3),
        "open_to_first_token_over_without": round(sum(with_it.values()) / sum(without.values()), 3),
        "from_disk_over_without": round(sum(medians["from disk"].values()) / sum(without.values()), 3),
    }


def _answer(options: argparse.Namespace) -> None:
    """One process: from opening the artifact to the first token of its first chat."""
    times = [time.perf_counter()]
    with Engine.open(options.artifact, RuntimeSettings(num_threads=options.threads)) as engine:
        times.append(time.perf_counter())
        engine.warm_up()
        times.append(time.perf_counter())
        messages = [_QUESTION]
        if options.system is not None:
            messages.insert(0, {"role": "system", "content": options.system.read_text(encoding="utf-8")})
        chat = render_chat(engine, messages, [], {})
        outputs: list[RequestOutput] = []
        engine.submit(chat.token_ids, _PARAMS, outputs.append, snapshot_at=chat.snapshot_at)
        while not outputs:
            time.sleep(0.0002)
        times.append(time.perf_counter())
    assert outputs[-1].num_cached_tokens == options.expected, outputs[-1]
    report({stage: end - start for stage, (start, end) in zip(_STAGES, pairwise(times), strict=True)})


def _linked(artifact: Path, folder: Path) -> Path:
    """The artifact under another name, without baked prefixes."""
    for path in artifact.rglob("*"):
        if path.is_file() and FOLDER not in path.relative_to(artifact).parts:
            target = folder / path.relative_to(artifact)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    return folder


def _system_text(artifact: Path, num_tokens: int) -> str:
    """A system text whose turn has about `num_tokens` tokens."""
    model = model_files.load(open_artifact(artifact))
    rules = [f"Rule {number}: answer question {number * 37 % 101} before you ask one." for number in range(num_tokens)]

    def length(count: int) -> int:
        return len(system_beginning(model, [{"role": "system", "content": "\n".join(rules[:count])}], []))

    count = max(1, round(num_tokens * 50 / length(50)))
    return "\n".join(rules[:count])


def _drop_from_page_cache(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--system-tokens", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--read", action="store_true", help="also measure the chat with nothing baked")
    for name, kind in (("--task", str), ("--system", Path), ("--expected", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
