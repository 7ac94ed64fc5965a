"""Draw the last line of infra.bench.cold_start as a picture.

    python -m infra.bench.cold_start ARTIFACT ... | tail -1 > cold-start.json
    python -m infra.bench.waterfall cold-start.json docs/cold-start.svg

A row for each kind of server: bars from the start of the process to the first streamed text, one for each phase.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

_WIDTH, _LEFT, _RIGHT = 1000, 150, 130
_TOP, _ROW, _BAR = 66, 78, 30
_TITLES = {"native": "native kernels", "onnxruntime": "ONNX Runtime's", "llama-server": "llama-server"}
_COLOURS = {
    "imports": "#94a3b8",
    "process": "#94a3b8",
    "files": "#60a5fa",
    "session": "#f97316",
    "model": "#f97316",
    "weights": "#a78bfa",
    "states": "#facc15",
    "warm-up": "#34d399",
    "first text": "#0f766e",
    "other": "#cbd5e1",
}
_LEAST_LABEL = 46  # pixels; a narrower bar is named in the legend only


@dataclass(frozen=True, slots=True)
class Bar:
    """A phase, in seconds from the start of the process."""

    name: str
    begin: float
    end: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("svg", type=Path)
    options = parser.parse_args(arguments)
    options.svg.write_text(picture(json.loads(options.json.read_text(encoding="utf-8"))), encoding="utf-8")


def picture(result: Mapping[str, Any]) -> str:
    """The SVG of a cold_start result."""
    rows = {kind: list(bars(each)) for kind, each in result["kernels"].items()}
    scale = (_WIDTH - _LEFT - _RIGHT) / max(row[-1].end for row in rows.values())
    height = _TOP + _ROW * len(rows) + 30
    names = dict.fromkeys(bar.name for row in rows.values() for bar in row)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="14">',
        f'  <rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        *_legend(names),
    ]
    for number, (kind, row) in enumerate(rows.items()):
        top, memory = _TOP + _ROW * number, result["kernels"][kind]["anonymous_bytes"] / 1e6
        parts.append(f'  <text x="20" y="{top + 20}" font-weight="600">{escape(_TITLES.get(kind, kind))}</text>')
        for bar in row:
            left, width = _LEFT + bar.begin * scale, (bar.end - bar.begin) * scale
            parts.append(
                f'  <rect x="{left:.1f}" y="{top}" width="{max(width, 0.6):.1f}" height="{_BAR}" '
                f'fill="{_COLOURS[bar.name]}"><title>{bar.name} {bar.end - bar.begin:.3f} s</title></rect>'
            )
            if width >= _LEAST_LABEL:
                middle = left + width / 2
                parts.append(
                    f'  <text x="{middle:.1f}" y="{top + 20}" text-anchor="middle" font-size="12">'
                    f"{bar.end - bar.begin:.2f}</text>"
                )
        end = _LEFT + row[-1].end * scale
        parts.append(f'  <text x="{end + 8:.1f}" y="{top + 14}" font-weight="600">{row[-1].end:.2f} s</text>')
        parts.append(f'  <text x="{end + 8:.1f}" y="{top + 30}" font-size="12" fill="#4b5563">{memory:,.0f} MB</text>')
    note = (
        f"from the start of the process to the first streamed text; {result['weight_bytes'] / 1e9:.2f} GB of weights "
        f"in the page cache, {result['threads']} threads, medians of {result['rounds']}; MB: anonymous memory"
    )
    parts.append(f'  <text x="20" y="{height - 14}" font-size="12" fill="#6b7280">{escape(note)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def bars(start: Mapping[str, Any]) -> Iterator[Bar]:
    """The phases of one kind, one after the other.

    A server that names its phases loads after it listens. Of another only its readiness is known.
    """
    listening, ready, first = (start[key] for key in ("listening_s", "ready_s", "first_text_s"))
    yield Bar("imports" if start["phases_s"] else "process", 0, listening)
    at = listening
    for name, seconds in start["phases_s"].items():
        yield Bar(name, at, at := min(at + seconds, ready))
    if ready > at:
        yield Bar("other" if start["phases_s"] else "model", at, ready)
    yield Bar("first text", ready, first)


def _legend(names: Mapping[str, None]) -> Iterator[str]:
    left = 20
    for name in names:
        yield f'  <rect x="{left}" y="18" width="14" height="14" fill="{_COLOURS[name]}"/>'
        yield f'  <text x="{left + 20}" y="30">{name}</text>'
        left += 40 + 8 * len(name)


if __name__ == "__main__":
    main()
