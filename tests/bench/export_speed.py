"""How fast an export is, how much memory it takes, and how that compares with merely reading the same bytes.

    python -m tests.bench.export_speed CHECKPOINT [--weights int4] [--threads 2] [--rounds 3] [--cold]

Each round reads the checkpoint's files with as many threads and then exports it, each in a process of its own; the
medians count. --cold takes the files out of the page cache before each run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

_READ_BYTES = 1 << 20
_SAMPLE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Run:
    """One process. Memory is the peak, in bytes; anonymous memory is what no file backs, sampled."""

    wall_s: float
    cpu_s: float
    max_rss: int
    max_anonymous: int
    stages: dict[str, float]  # seconds


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.task == "read":
        _report(_read(options.checkpoint, options.threads))
    elif options.task == "export":
        _report(_export(options))
    else:
        _measure(options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, help="where to write; the system's temporary folder by default")
    parser.add_argument("--cold", action="store_true", help="take the files out of the page cache first")
    parser.add_argument("--task", choices=["read", "export"], help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace) -> None:
    size = sum(path.stat().st_size for path in options.checkpoint.glob("*.safetensors"))
    runs: dict[str, list[Run]] = {"read": [], "export": []}
    for number in range(options.rounds):
        for task, done in runs.items():
            if options.cold:
                _forget(options.checkpoint)
            run = _run(task, options)
            done.append(run)
            print(
                f"round {number + 1} {task:6}: {run.wall_s:6.2f} s, {size / 1e6 / run.wall_s:6.0f} MB/s,"
                f" cpu {run.cpu_s:5.2f} s, rss {run.max_rss / 1e6:,.0f} MB, anonymous {run.max_anonymous / 1e6:,.0f} MB"
                + "".join(f", {stage} {seconds:.2f} s" for stage, seconds in run.stages.items()),
                flush=True,
            )
    summary = {task: _medians(done, size) for task, done in runs.items()}
    weights_s = summary["export"]["weights_s"]
    print(
        json.dumps(
            {
                "benchmark": "export_speed",
                "input_bytes": size,
                "weights": options.weights,
                "threads": options.threads,
                "cold": options.cold,
                "weight_stage_mb_per_s": round(size / 1e6 / weights_s, 1),
                **summary,
            }
        )
    )


def _forget(checkpoint: Path) -> None:
    """Take a checkpoint's shards out of the page cache."""
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _medians(runs: list[Run], size: int) -> dict[str, float]:
    medians: dict[str, float] = {
        name: round(statistics.median(asdict(run)[name] for run in runs), 3)
        for name in ("wall_s", "cpu_s", "max_rss", "max_anonymous")
    }
    medians |= {
        f"{stage}_s": round(statistics.median(run.stages[stage] for run in runs), 3) for stage in runs[0].stages
    }
    return medians | {"mb_per_s": round(size / 1e6 / medians["wall_s"], 1)}


def _run(task: str, options: argparse.Namespace) -> Run:
    """Run one task in a process of its own and watch its memory."""
    command = [sys.executable, "-m", "tests.bench.export_speed", str(options.checkpoint), "--task", task]
    command += ["--weights", options.weights, "--target", options.target, "--threads", str(options.threads)]
    command += ["--scratch", str(options.scratch)] if options.scratch else []
    anonymous = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            anonymous = max(anonymous, _anonymous_bytes(status))
            time.sleep(_SAMPLE_SECONDS)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the {task} task failed with status {process.returncode}")
    report = json.loads(output.splitlines()[-1])
    return Run(**report, max_anonymous=anonymous)


def _anonymous_bytes(status: Path) -> int:
    """RssAnon of a process; 0 once it has ended, or where the kernel does not tell."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def _report(stages: dict[str, float]) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "wall_s": sum(stages.values()),
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "max_rss": usage.ru_maxrss * 1024,
                "stages": stages,
            }
        )
    )


def _read(checkpoint: Path, threads: int) -> dict[str, float]:
    """Read every byte of the shards once, in slices, into buffers that are used again."""
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


def _export(options: argparse.Namespace) -> dict[str, float]:
    """Export into a temporary folder; seconds of each stage, imports apart."""
    from qwonnx.export.pipeline import ExportOptions, export_checkpoint
    from qwonnx.export.progress import ExportProgress

    starts: dict[str, float] = {}

    def note(progress: ExportProgress) -> None:
        starts.setdefault(progress.stage, time.perf_counter())

    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        starts["open"] = time.perf_counter()
        export_checkpoint(
            options.checkpoint,
            Path(folder) / "artifact",
            ExportOptions(target=options.target, weights=options.weights, num_threads=options.threads),
            on_progress=note,
        )
        end = time.perf_counter()
    bounds = [*starts.values(), end]
    return {stage: bounds[i + 1] - bounds[i] for i, stage in enumerate(starts)}


if __name__ == "__main__":
    main()
