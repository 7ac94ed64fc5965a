"""Draws the course of a training as an SVG: losses above, exact match on held-out examples below.

A training writes its own SVG. `python -m infra.miniature.curves LOG [LOG ...] --out FILE` draws several logs as one;
each training started from the result of the one before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 640, 240, 56, 28, 64
_INKS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f", "#bcbd22", "#e377c2")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of log.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def joined(logs: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The records of several logs, their tokens counted from the beginning of the first."""
    records: list[dict[str, Any]] = []
    for log in logs:
        before = records[-1]["tokens"] if records else 0
        records += [{**record, "tokens": before + record["tokens"]} for record in log]
    return records


def write_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the log's losses and scores over millions of tokens."""
    losses: dict[str, list[tuple[float, float]]] = {}
    scores: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        tokens = record["tokens"] / 1e6
        for name, value in record.get("losses", {}).items():
            losses.setdefault(name, []).append((tokens, value))
        for name, value in record.get("scores", {}).items():
            scores.setdefault(name, []).append((tokens, value["exact"]))
    # A training that starts from a checkpoint has scores before it has seen a token.
    last = max([1, *(record["tokens"] for record in records)]) / 1e6
    top = max((value for points in losses.values() for _, value in points), default=1.0)
    height = 2 * (_HEIGHT + _GAP) + _TOP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH + _LEFT + 190}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="{height}" fill="white"/>',
        *_chart("Loss", losses, last, top, _TOP),
        *_chart("Exact match, held out", scores, last, 1.0, _TOP + _HEIGHT + _GAP),
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _chart(title: str, series: Mapping[str, Points], last: float, top: float, y: int) -> list[str]:
    """One chart of [0, last] by [0, top], its upper left corner at (_LEFT, y)."""
    parts = [f'<text x="{_LEFT}" y="{y - 8}" font-weight="bold">{title}</text>']
    for step in range(5):
        height, value = y + _HEIGHT - _HEIGHT * step / 4, top * step / 4
        parts.append(f'<path d="M{_LEFT} {height:.1f}h{_WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{value:.2f}</text>')
        x = _LEFT + _WIDTH * step / 4
        parts.append(f'<text x="{x:.1f}" y="{y + _HEIGHT + 16}" text-anchor="middle">{last * step / 4:.2f}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH}" y="{y + _HEIGHT + 32}" text-anchor="end">million tokens</text>')
    for number, (name, points) in enumerate(series.items()):
        ink = _INKS[number % len(_INKS)]
        path = " ".join(
            f"{_LEFT + _WIDTH * tokens / last:.1f},{y + _HEIGHT * (1 - value / top):.1f}" for tokens, value in points
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="1.5"/>')
        parts.append(f'<text x="{_LEFT + _WIDTH + 12}" y="{y + 12 + 18 * number}" fill="{ink}">{name}</text>')
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.miniature.curves",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("logs", metavar="LOG", type=Path, nargs="+", help="log.jsonl of a training")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    options = parser.parse_args(arguments)
    write_curves(joined(read_log(log) for log in options.logs), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
