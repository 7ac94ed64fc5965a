"""How fast quantised checkpoints are exported, beside the same model in BF16.

    python -m infra.bench.format_speed FOLDER [--formats NAME ...] [--rounds 3]

Writes a checkpoint of two layers with 64 experts (100 M parameters) and its copy in each format into FOLDER, where they
are kept for the next time. Each round exports all of them in turn, each in a process of its own. Speeds are of the
weight stage, in values a second; a ratio is BF16's seconds over the format's in the same round, so 0.5 is half as fast.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.bench.measured import report, run_task
from tests.checkpoints.every_format import FORMATS, write_format
from tests.checkpoints.tiny import write_tiny

_FLOATS = "bf16"
_SHAPE: dict[str, Any] = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "hidden_size": 1024,
    "moe_intermediate_size": 512,
    "num_experts": 64,
    "shared_expert_intermediate_size": 512,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task:
        _export(options.folder / options.task)
        return
    _write(options.folder, options.formats)
    walls: dict[str, list[float]] = {}
    processors: dict[str, list[float]] = {}
    for number in range(options.rounds):
        for name in (_FLOATS, *options.formats):
            run = run_task("infra.bench.format_speed", [str(options.folder), "--task", name])
            walls.setdefault(name, []).append(run.stages["weights"])
            processors.setdefault(name, []).append(run.facts["weights_cpu_s"])
            shown = f"{run.stages['weights']:6.2f} s, cpu {run.facts['weights_cpu_s']:6.2f} s"
            print(f"round {number + 1} {name:22}: {shown}, rss {run.max_rss / 1e6:,.0f} MB", flush=True)
    ratios = {
        name: {
            "wall": _ratios(walls[_FLOATS], walls[name]),
            "cpu": _ratios(processors[_FLOATS], processors[name]),
            "seconds": round(statistics.median(walls[name]), 2),
        }
        for name in options.formats
    }
    floats = round(statistics.median(walls[_FLOATS]), 2)
    print(
        json.dumps({"benchmark": "format_speed", "bf16_seconds": floats, "rounds": options.rounds, "formats": ratios})
    )


def _ratios(floats: Sequence[float], coded: Sequence[float]) -> dict[str, float]:
    each = [one / other for one, other in zip(floats, coded, strict=True)]
    return {"median": round(statistics.median(each), 2), "lowest": round(min(each), 2)}


def _write(folder: Path, formats: Sequence[str]) -> None:
    source = folder / _FLOATS
    if not source.exists():
        write_tiny(source, fused_experts=False, vision=False, text_overrides=_SHAPE)
    for name in formats:
        if not (folder / name).exists():
            print(f"writing {name}", file=sys.stderr, flush=True)
            write_format(source, folder / name, name)


def _export(checkpoint: Path) -> None:
    """Export, and report the seconds of the weight stage."""
    from qwonnx.export.pipeline import ExportOptions, export_checkpoint
    from qwonnx.export.weight_files.progress import ExportProgress

    began: dict[str, tuple[float, float]] = {}

    def note(progress: ExportProgress) -> None:
        began.setdefault(progress.stage, (time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as scratch:
        export_checkpoint(checkpoint, Path(scratch) / "out", ExportOptions(), on_progress=note)
    (wall, cpu), (end, end_cpu) = began["weights"], began["finish"]
    report({"weights": end - wall}, {"weights_cpu_s": end_cpu - cpu})


if __name__ == "__main__":
    main()
