"""Compares qwonnx with onnxruntime-genai: one checkpoint, int4, the same prompt and threads, in alternating runs.

    python -m infra.bench.peers --work .bench [--checkpoint FOLDER] [--rounds 9] [--threads 2]

Each engine is a separate process that loads its model once and then measures one request for each command; only one
works at a time. genai runs twice: with the threads of qwonnx, and with its default ("genai-default"), which is half of
the processors that it sees. Its builder exports the checkpoint with its defaults; --tuned-peer gives it qwonnx's block
size. Without --checkpoint the geometry of 35B-A3B, cut to 4 layers, is made in the work folder (6.9 GB); exports that
exist there are reused. The benchmark measures the time to the first token of a prompt of 512 tokens, and the rate of
the 64 tokens after it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from infra.bench.measured import ratio_summary

PROMPT_TOKENS = 512
DECODE_TOKENS = 64
_PAUSE_SECONDS = 0.5  # lets the other engine's threads end their busy wait
ENGINES = ("qwonnx", "genai", "genai-default")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path(".bench"), help="where checkpoint and exports lie or are made"
    )
    parser.add_argument("--checkpoint", type=Path, help="measure this one instead")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tuned-peer", action="store_true", help="blocks of 128 for genai too")
    options = parser.parse_args(arguments)
    try:
        version("onnxruntime-genai")
    except PackageNotFoundError:
        sys.exit("onnxruntime-genai is not installed: pip install -e '.[bench]'")
    models = make_models(options)
    runs = _take_turns(models, options)
    summary = {
        "benchmark": "peers",
        "command": " ".join(["python -m infra.bench.peers", *(sys.argv[1:] if arguments is None else arguments)]),
        "versions": {name: version(name) for name in ("qwonnx", "onnxruntime", "onnxruntime-genai")},
        "processor": _processor(),
        "threads": options.threads,
        "rounds": options.rounds,
        **ratios(runs),
    }
    print(json.dumps(summary))


def make_models(options: argparse.Namespace) -> dict[str, Path]:
    """Both engines' exports of the checkpoint, made if they are missing."""
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    checkpoint: Path = options.checkpoint or work / "geometry"
    if not checkpoint.exists():
        make_once(checkpoint, ["python", "-m", "tests.checkpoints", "geometry"])
    ours = work / "qwonnx-int4"
    if not ours.exists():
        make_once(ours, ["qwonnx", "export", str(checkpoint)], ["--weights", "int4", "--recipe", "none"])
    theirs = work / ("genai-int4-tuned" if options.tuned_peer else "genai-int4")
    if not theirs.exists():
        tuning = ["--extra_options", "block_size=128", "qmoe_block_size=128"] if options.tuned_peer else []
        source = _without_mtp(checkpoint, work)
        builder = ["python", "-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o"]
        make_once(theirs, builder, ["-p", "int4", "-e", "cpu", "-c", str(work / "genai-cache"), *tuning])
    return {"qwonnx": ours, "genai": theirs, "genai-default": theirs}


def make_once(folder: Path, command: list[str], options: Sequence[str] = ()) -> None:
    """Run a program of this environment that makes a folder: `command FOLDER options`.

    The folder has another name until it is complete, so that the next run does not use an interrupted one's.
    """
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    line = [*command, str(unfinished), *options]
    print("$", *line, flush=True)
    subprocess.run([str(Path(sys.executable).with_name(line[0])), *line[1:]], check=True)
    unfinished.rename(folder)


def _without_mtp(checkpoint: Path, work: Path) -> Path:
    """Links to the checkpoint, with a config.json without the draft head, whose weights genai's builder requires."""
    folder = work / "genai-checkpoint"
    folder.mkdir(exist_ok=True)
    for path in checkpoint.iterdir():
        link = folder / path.name
        if not link.exists() and path.name != "config.json":
            link.symlink_to(path.resolve())
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config.get("text_config", config)["mtp_num_hidden_layers"] = 0
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _take_turns(models: dict[str, Path], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    children = {name: _start(name, models[name], options.threads) for name in ENGINES}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
    try:
        for turn in range(-1, options.rounds):  # the first round warms up, and is not counted
            # The order changes each round, so that other work on the machine affects all engines alike.
            for name in ENGINES if turn % 2 else reversed(ENGINES):
                time.sleep(_PAUSE_SECONDS)
                measured = _measure(children[name])
                if turn >= 0:
                    runs[name].append(measured)
                    print(
                        f"round {turn + 1} {name:13}: prompt {measured['prompt']:7.1f} tokens/s,"
                        f" decode {measured['decode']:6.1f} tokens/s",
                        flush=True,
                    )
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    return runs


def _start(name: str, model: Path, threads: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "infra.bench.peer_engines", name, str(model), str(threads)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    if child.stdout.readline().strip() != "ready":
        raise SystemExit(f"{name} did not load {model}")
    return child


def _measure(child: subprocess.Popen[str]) -> dict[str, float]:
    """One request: tokens per second of the prompt and of the tokens after the first."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    line = child.stdout.readline()
    if not line:
        raise SystemExit("an engine stopped while it was measured")
    seconds = json.loads(line)
    return {"prompt": PROMPT_TOKENS / seconds["prompt"], "decode": DECODE_TOKENS / seconds["decode"]}


def ratios(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for what in ("prompt", "decode"):
        rates = {name: [run[what] for run in runs[name]] for name in ENGINES}
        result[f"{what}_tokens_per_s"] = {name: round(statistics.median(values), 1) for name, values in rates.items()}
        for peer in ENGINES[1:]:
            result[f"{what}_ratio_to_{peer}"] = ratio_summary(rates["qwonnx"], rates[peer])
    return result


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.processor()} x {os.cpu_count()}"
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name} x {os.cpu_count()}"


if __name__ == "__main__":
    main()
