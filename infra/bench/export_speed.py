"""Speed and memory of an export, and the time that its weight stage adds to reading and arithmetic.

    python -m infra.bench.export_speed CHECKPOINT [--weights int4] [--recipe NAME] [--memory 2GB] [--threads 2]
                                       [--rounds 3] [--cold]

Each round runs three processes. The first reads the checkpoint's files. The second reads and quantises all weights as
an export does, slice by slice with the same threads, and drops the results. The third exports. The results are medians.
--cold removes the files from the page cache before each run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from infra.bench.measured import Run, report, run_task
from qwonnx.export.targets.register import DEFAULT_TARGET

if TYPE_CHECKING:
    from qwonnx.export.pipeline import ExportOptions

_READ_BYTES = 1 << 20
_TASKS = ("read", "arithmetic", "export")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.task == "read":
        report(_read(options.checkpoint, options.threads))
    elif options.task == "arithmetic":
        report(_arithmetic(options))
    elif options.task == "export":
        _export(options)
    else:
        _measure(options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--recipe", help="as of `qwonnx export`: a shipped recipe, none, or a file")
    parser.add_argument("--target", default=DEFAULT_TARGET)
    parser.add_argument("--memory", default="2GB", help="of tensors in flight")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where to write; the system's temporary folder by default")
    parser.add_argument("--cold", action="store_true", help="take the files out of the page cache first")
    parser.add_argument("--task", choices=_TASKS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> None:
    size = sum(path.stat().st_size for path in options.checkpoint.glob("*.safetensors"))
    runs: dict[str, list[Run]] = {task: [] for task in _TASKS}
    for number in range(options.rounds):
        for task, done in runs.items():
            if options.cold:
                _forget(options.checkpoint)
            run = run_task("infra.bench.export_speed", _arguments(task, options))
            done.append(run)
            print(
                f"round {number + 1} {task:10}: {run.wall_s:6.2f} s, {size / 1e6 / run.wall_s:6.0f} MB/s,"
                f" cpu {run.cpu_s:5.2f} s, rss {run.max_rss / 1e6:,.0f} MB, anonymous {run.max_anonymous / 1e6:,.0f} MB"
                + "".join(f", {stage} {seconds:.2f} s" for stage, seconds in run.stages.items()),
                flush=True,
            )
    summary = {task: _medians(done, size) for task, done in runs.items()}
    weights_s, least_s = summary["export"]["weights_s"], summary["arithmetic"]["weights_s"]
    print(
        json.dumps(
            {
                "benchmark": "export_speed",
                "input_bytes": size,
                "weights": options.weights,
                "recipe": options.recipe,
                "memory": options.memory,
                "threads": options.threads,
                "cold": options.cold,
                "weight_stage_mb_per_s": round(size / 1e6 / weights_s, 1),
                "weight_stage_over_reading_and_arithmetic": round(weights_s / least_s, 3),
                **summary,
            }
        )
    )


def _arguments(task: str, options: argparse.Namespace) -> list[str]:
    arguments = [str(options.checkpoint), "--task", task, "--weights", options.weights, "--target", options.target]
    arguments += ["--memory", options.memory, "--threads", str(options.threads)]
    arguments += ["--recipe", options.recipe] if options.recipe else []
    return arguments + (["--scratch", str(options.scratch)] if options.scratch else [])


def _forget(checkpoint: Path) -> None:
    """Remove a checkpoint's shards from the page cache."""
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _medians(runs: list[Run], size: int) -> dict[str, float]:
    medians: dict[str, float] = {
        name: round(statistics.median(getattr(run, name) for run in runs), 3)
        for name in ("wall_s", "cpu_s", "max_rss", "max_anonymous")
    }
    medians |= {
        f"{stage}_s": round(statistics.median(run.stages[stage] for run in runs), 3) for stage in runs[0].stages
    }
    medians |= {fact: round(statistics.median(run.facts[fact] for run in runs), 3) for fact in runs[0].facts}
    return medians | {"mb_per_s": round(size / 1e6 / medians["wall_s"], 1)}


def _read(checkpoint: Path, threads: int) -> dict[str, float]:
    """Read every byte of the shards once, in slices, into buffers that are reused."""
    jobs = [
        (path, start)
        for path in sorted(checkpoint.glob("*.safetensors"))
        for start in range(0, path.stat().st_size, 64 * _READ_BYTES)
    ]

    def read(job: tuple[Path, int]) -> None:
        path, start = job
        buffer = bytearray(_READ_BYTES)
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            for _ in range(64):
                if not file.readinto(buffer):
                    break

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, jobs))
    return {"read": time.perf_counter() - began}


def _arithmetic(options: argparse.Namespace) -> dict[str, float]:
    """The weight stage without writing: the same slices through the same functions; the results are dropped."""
    import torch

    from qwonnx.export.checkpoint.checkpoint import Checkpoint
    from qwonnx.export.checkpoint.config import load_config
    from qwonnx.export.checkpoint.weight_source import WeightSource
    from qwonnx.export.modeling.trace import trace_decoder
    from qwonnx.export.quantization.importance import Importance
    from qwonnx.export.targets.lowered_graph import lower_decoder
    from qwonnx.export.targets.register import choose_target
    from qwonnx.export.weight_files import weight_stage
    from qwonnx.export.weight_files.external_data import ShardPrefix
    from qwonnx.export.weight_files.layout import lay_out
    from qwonnx.export.weight_files.memory_budget import cut_for
    from qwonnx.export.weight_files.weight_slices import ShardSlices, WeightPlan, WeightSlice

    export, config = _export_options(options), load_config(options.checkpoint)
    assert export.recipe is not None
    traced = time.perf_counter()
    choice = choose_target(export.target, export.activations, export.kv)
    decoder = lower_decoder(trace_decoder(config), export.recipe, config, choice)
    items = decoder.weights.items()
    began = time.perf_counter()
    source = WeightSource(Checkpoint.open(options.checkpoint), config)
    plans = [WeightPlan(item.storage, tuple(map(source.part, item.weights))) for item in items]
    cut = cut_for(export.memory_bytes, options.threads, lambda values: max(plan.making_bytes(values) for plan in plans))
    slices = [
        part
        for layout in lay_out([plan.size for plan in plans])
        for part in ShardSlices(plans, layout, ShardPrefix.empty(layout), cut.max_values)
    ]

    def make(part: WeightSlice) -> None:
        weight_stage.encode(Importance({}), part)

    with ThreadPoolExecutor(cut.num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(make, slices))
    return {"trace": began - traced, "weights": time.perf_counter() - began}


def _export_options(options: argparse.Namespace) -> ExportOptions:
    from qwonnx.export.pipeline import ExportOptions
    from qwonnx.export.quantization.recipe import Recipe
    from qwonnx.runtime.quantities import parse_bytes

    return ExportOptions(
        target=options.target,
        weights=options.weights,
        recipe=Recipe.choose(options.recipe, options.weights, None),
        num_threads=options.threads,
        memory_bytes=parse_bytes(options.memory, "--memory"),
    )


def _export(options: argparse.Namespace) -> None:
    """Export into a temporary folder, and report the seconds of each stage, without imports."""
    from qwonnx.export.pipeline import export_checkpoint
    from qwonnx.export.weight_files.progress import ExportProgress

    starts: dict[str, float] = {}
    peak = 0

    def note(progress: ExportProgress) -> None:
        nonlocal peak
        starts.setdefault(progress.stage, time.perf_counter())
        peak = max(peak, progress.peak_bytes)

    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        starts["open"] = time.perf_counter()
        export_checkpoint(options.checkpoint, Path(folder) / "artifact", _export_options(options), on_progress=note)
        end = time.perf_counter()
    bounds = [*starts.values(), end]
    report({stage: bounds[i + 1] - bounds[i] for i, stage in enumerate(starts)}, {"max_in_flight": peak})


if __name__ == "__main__":
    main()
