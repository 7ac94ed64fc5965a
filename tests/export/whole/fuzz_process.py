"""A process that exports malformed checkpoints, one by one, with little memory: see test_fuzzed_checkpoints.py.

    python -m tests.export.whole.fuzz_process FOLDER SEED SCALE

It writes a JSON report to stdout. Every export must soon end in one of the exporter's own errors, in one printable
line, and leave nothing behind; or it gets as far as tracing, where the export of a sound checkpoint is stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.checkpoint.config import load_config
from qwonnx.export.errors import ExportError
from qwonnx.export.modeling.rotary import rope_frequencies
from qwonnx.export.weight_files.progress import ExportProgress
from tests.export.checkpoint.malformed_checkpoints import Case, mutated_cases, named_cases, write_sound

# In addition to the memory at the start: libraries, thread pools, and the cases' own bytes.
MEMORY_BYTES = 512 << 20
SECONDS = 3.0  # of the processor
_LONGEST_MESSAGE = 1500  # of which a path may be a large part


class Accepted(Exception):
    """The checkpoint was found sound."""


def main(folder: Path, seed: int, scale: int) -> dict[str, Any]:
    sound = {sharded: write_sound(folder / f"sound-{sharded}", sharded=sharded) for sharded in (False, True)}
    outcomes: Counter[str] = Counter()
    problems: list[str] = []
    for sharded in sound:  # imports on first use happen here, and must not count
        problem = _export(folder, Case("sound", lambda path: None, sharded, must_be_refused=False), sound, outcomes)
        assert problem is None, problem
    _limit_memory()
    outcomes.clear()
    cases: Iterable[Case] = itertools.chain(named_cases(), mutated_cases(sound[False], sound[True], seed, scale))
    slowest, count, started = ("", 0.0), 0, time.monotonic()
    for case in cases:
        before = time.process_time()
        problem = _export(folder, case, sound, outcomes)
        seconds = time.process_time() - before
        if problem is None and seconds > SECONDS:
            problem = f"took {seconds:.1f} s"
        if problem is not None:
            problems.append(f"{case.name}: {problem}")
        slowest = max(slowest, (case.name, seconds), key=lambda item: item[1])
        count += 1
    return {
        "cases": count,
        "outcomes": outcomes,
        "problems": problems,
        "slowest": slowest,
        "seconds": time.monotonic() - started,
    }


def _export(folder: Path, case: Case, sound: dict[bool, Path], outcomes: Counter[str]) -> str | None:
    """Export one case; returns what is wrong with its end, or None."""
    checkpoint, out = folder / "checkpoint", folder / "out"
    out.mkdir(exist_ok=True)
    checkpoint.mkdir(exist_ok=True)
    for path in checkpoint.iterdir():  # making and removing folders takes longer than all else
        path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
    for path in sound[case.sharded].iterdir():
        (checkpoint / path.name).symlink_to(path)
    case.damage(checkpoint)
    try:
        export_checkpoint(checkpoint, out / "artifact", ExportOptions(weights="fp32"), on_progress=_stop_at_tracing)
    except Accepted:
        outcomes["accepted"] += 1
        return "was accepted" if case.must_be_refused else _unsound(checkpoint)
    except ExportError as error:
        outcomes[type(error).__name__] += 1
        message = str(error)
        if not message.isprintable():
            return f"has a message that is not a printable line: {message!r:.300}"
        if len(message) > _LONGEST_MESSAGE or ": " not in message:
            return f"has a message of {len(message)} characters without a remedy, or too long: {message:.300}"
    except BaseException:  # noqa: BLE001 - a panic of a library is not an Exception, and this test looks for panics
        return traceback.format_exc(limit=-4)
    left = [path.name for path in out.iterdir()]
    return f"left {left}" if left else None


def _stop_at_tracing(progress: ExportProgress) -> None:
    raise Accepted


def _unsound(checkpoint: Path) -> str | None:
    """Numbers that become infinite in the graph, which an accepted checkpoint must not have."""
    config = load_config(checkpoint)
    frequencies, factor = rope_frequencies(config.rope, config.rotary_dim)
    finite = bool(torch.isfinite(frequencies).all()) and bool(torch.isfinite(torch.tensor(factor)))
    return None if finite else f"has rotary frequencies that are not finite: {config.rope}"


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
