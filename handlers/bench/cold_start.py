"""Starts of several servers in turn, and their medians: other work on the machine then meets all of them alike."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwonnx.handlers.bench.start import MODEL, PORT, Phase, Start, measure

OURS = "qwonnx"
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Spread:
    """The least and the middle of some numbers."""

    least: float
    median: float


@dataclass(frozen=True, slots=True)
class ColdStart:
    """All starts of one command: see Start. phases: medians, in the order of their begin."""

    command: tuple[str, ...]
    listening_s: Spread
    ready_s: Spread | None
    first_text_s: Spread
    cpu_s: Spread
    resident_bytes: Spread
    anonymous_bytes: Spread
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The starts of each command, by name, and the median ratio of our time to the first text to each other one's."""

    runs: int
    weight_bytes: int
    starts: Mapping[str, ColdStart]
    first_text_over: Mapping[str, float]


def serve_command(artifact: Path, options: Sequence[str]) -> list[str]:
    """The command that serves an artifact on this interpreter."""
    call = [sys.executable, "-c", "from qwonnx.handlers.cli.main import main; main()", "serve", str(artifact)]
    return [*call, "--port", PORT, "--model-name", MODEL, *options]


def compare(
    commands: Mapping[str, Sequence[str]],
    weights: Sequence[Path],
    *,
    runs: int,
    seconds: float,
    evict: bool,
    on_start: Callable[[str, Start], None] = lambda name, start: None,
) -> Comparison:
    """Start each command in turn, several times. Ours is the first.

    Args:
        commands: by name.
        weights: files that are read before the first start, so that all find them in the system's memory.
        runs: starts of each.
        seconds: the longest time of one start.
        evict: take the files out of the system's memory before each start instead.
        on_start: called after each start.

    Raises:
        BenchError: a command does not answer.
    """
    if not evict:
        for path in weights:
            _read(path)
    starts: dict[str, list[Start]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            if evict:
                for path in weights:
                    _evict(path)
            starts[name].append(measure(command, seconds=seconds))
            on_start(name, starts[name][-1])
    ours, *others = starts
    return Comparison(
        runs,
        sum(path.stat().st_size for path in weights),
        {name: _of(tuple(commands[name]), each) for name, each in starts.items()},
        {name: _ratio(starts[ours], starts[name]) for name in others},
    )


def _of(command: tuple[str, ...], starts: Sequence[Start]) -> ColdStart:
    ready = [start.ready_s for start in starts if start.ready_s is not None]
    return ColdStart(
        command=command,
        listening_s=_spread([start.listening_s for start in starts]),
        ready_s=_spread(ready) if ready else None,
        first_text_s=_spread([start.first_text_s for start in starts]),
        cpu_s=_spread([start.cpu_s for start in starts]),
        resident_bytes=_spread([start.resident_bytes for start in starts]),
        anonymous_bytes=_spread([start.anonymous_bytes for start in starts]),
        phases=_phases(starts),
    )


def _phases(starts: Sequence[Start]) -> tuple[Phase, ...]:
    by_name: dict[str, list[Phase]] = {}
    for start in starts:
        for phase in start.phases:
            by_name.setdefault(phase.name, []).append(phase)
    found = [
        Phase(
            name,
            round(statistics.median(phase.begin for phase in each), 4),
            round(statistics.median(phase.end for phase in each), 4),
            round(statistics.median(phase.cpu_s for phase in each), 4),
        )
        for name, each in by_name.items()
    ]
    return tuple(sorted(found, key=lambda each: each.begin))


def _spread(numbers: Sequence[float]) -> Spread:
    return Spread(round(min(numbers), 4), round(statistics.median(numbers), 4))


def _ratio(ours: Sequence[Start], others: Sequence[Start]) -> float:
    pairs = zip(ours, others, strict=True)
    return round(statistics.median(one.first_text_s / other.first_text_s for one, other in pairs), 3)


def _read(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(_CHUNK_BYTES):
            pass


def _evict(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
