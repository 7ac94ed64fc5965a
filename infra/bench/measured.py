"""Run a benchmark's task in a process of its own, and measure its time and memory."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Run:
    """One process. Memory is the peak, in bytes; anonymous memory is what no file backs, sampled."""

    wall_s: float
    cpu_s: float
    max_rss: int
    max_anonymous: int
    stages: dict[str, float]  # seconds
    facts: dict[str, float]  # whatever else the task reports


def run_task(module: str, arguments: Sequence[str], before: Callable[[], None] | None = None) -> Run:
    """Run `python -m module arguments`, which ends with `report`, and watch its memory.

    before: called in the new process before the program.
    """
    anonymous, command = 0, [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=before) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            anonymous = max(anonymous, _status_bytes(status, "RssAnon"))
            time.sleep(_SAMPLE_SECONDS)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed with status {process.returncode}")
    return Run(**json.loads(output.splitlines()[-1]), max_anonymous=anonymous)


def ratio_summary(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Of the ratios of two rates, round by round."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {
        "median": round(statistics.median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
    }


def report(stages: Mapping[str, float], facts: Mapping[str, float] | None = None) -> None:
    """Print what `run_task` reads: seconds of each stage, and other numbers."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "wall_s": sum(stages.values()),
                "cpu_s": usage.ru_utime + usage.ru_stime,
                # getrusage counts the process that started this one: on exec a high-water mark is handed on.
                "max_rss": _status_bytes(Path("/proc/self/status"), "VmHWM") or usage.ru_maxrss * 1024,
                "stages": stages,
                "facts": facts or {},
            }
        )
    )


def _status_bytes(status: Path, field: str) -> int:
    """A field of a process's status, in bytes; 0 once the process has ended, or where the kernel does not tell."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
