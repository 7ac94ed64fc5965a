"""Runs a benchmark's task in a separate process, and measures its time and memory."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Run:
    """One process. Memory is the peak, in bytes; anonymous memory, which has no file behind it, is sampled."""

    wall_s: float
    cpu_s: float
    max_rss: int
    max_anonymous: int
    stages: dict[str, float]  # seconds
    facts: dict[str, float]  # other numbers of the task


def run_task(module: str, arguments: Sequence[str]) -> Run:
    """Run `python -m module arguments`, which ends with `report`, and watch its memory."""
    anonymous = 0
    with subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            anonymous = max(anonymous, _anonymous_bytes(status))
            time.sleep(_SAMPLE_SECONDS)
        assert process.stdout is not None
        output = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{module} {' '.join(arguments)} failed with status {process.returncode}")
    return Run(**json.loads(output.splitlines()[-1]), max_anonymous=anonymous)


def ratio_summary(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Summary of the ratios of two rates, round by round."""
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {
        "median": round(statistics.median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
    }


def report(stages: Mapping[str, float], facts: Mapping[str, float] | None = None) -> None:
    """Print the line that `run_task` reads: seconds of each stage, and other numbers."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "wall_s": sum(stages.values()),
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "max_rss": usage.ru_maxrss * 1024,
                "stages": stages,
                "facts": facts or {},
            }
        )
    )


def _anonymous_bytes(status: Path) -> int:
    """RssAnon of a process; 0 if it has ended, or if the kernel does not report it."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)
