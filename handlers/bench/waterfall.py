"""A picture of cold starts: for each command the phases of its start as bars, from its process to the first text."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from qwonnx.handlers.bench.cold_start import ColdStart, Comparison
from qwonnx.handlers.bench.start import Phase

_WIDTH, _LEFT, _RIGHT = 1000, 230, 150
_TOP, _ROW, _BAR, _GAP, _TITLE = 20, 22, 16, 26, 24
_COLOURS = {
    "process": "#94a3b8",
    "options": "#94a3b8",
    "artifact": "#60a5fa",
    "files": "#60a5fa",
    "imports of the engine": "#94a3b8",
    "imports of the server": "#94a3b8",
    "session": "#f97316",
    "weights": "#a78bfa",
    "states": "#facc15",
    "warm-up": "#34d399",
    "first text": "#0f766e",
}
_OTHER = "#cbd5e1"


def picture(comparison: Comparison) -> str:
    """The SVG of a comparison: medians."""
    groups = {name: list(_bars(start)) for name, start in comparison.starts.items()}
    end = max(bar.end for bars in groups.values() for bar in bars)
    scale = (_WIDTH - _LEFT - _RIGHT) / end
    parts: list[str] = []
    top = _TOP
    for name, bars in groups.items():
        start = comparison.starts[name]
        memory = start.anonymous_bytes.median / 1e6
        total = f"{start.first_text_s.median:.2f} s, {start.cpu_s.median:.2f} s of processor time, {memory:,.0f} MB"
        parts.append(f'  <text x="20" y="{top + 16}"><tspan font-weight="600">{escape(name)}</tspan>: {total}</text>')
        top += _TITLE
        for bar in bars:
            parts += _bar(bar, top, scale)
            top += _ROW
        top += _GAP
    note = (
        "From the start of the process to the first streamed text; bars side by side run in threads. "
        f"{comparison.weight_bytes / 1e9:.2f} GB of weights. Medians of {comparison.runs}; MB: anonymous memory."
    )
    parts.append(f'  <text x="20" y="{top}" font-size="12" fill="#6b7280">{escape(note)}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + 16}" '
            'font-family="system-ui, sans-serif" font-size="14">',
            f'  <rect width="{_WIDTH}" height="{top + 16}" fill="#ffffff"/>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _bars(start: ColdStart) -> Iterator[Phase]:
    """The phases; of a server that tells none, only when its port opened."""
    yield from start.phases or (Phase("process", 0.0, start.listening_s.median, 0.0),)
    begin = start.ready_s.median if start.ready_s else start.listening_s.median
    yield Phase("first text" if start.ready_s else "loading and first text", begin, start.first_text_s.median, 0.0)


def _bar(bar: Phase, top: int, scale: float) -> Iterator[str]:
    left, width = _LEFT + bar.begin * scale, max((bar.end - bar.begin) * scale, 0.8)
    yield f'  <text x="{_LEFT - 10}" y="{top + 13}" text-anchor="end" font-size="13">{escape(bar.name)}</text>'
    yield (
        f'  <rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{_BAR}" '
        f'fill="{_COLOURS.get(bar.name, _OTHER)}"/>'
    )
    time = f"{1000 * (bar.end - bar.begin):.0f} ms"
    yield f'  <text x="{left + width + 6:.1f}" y="{top + 13}" font-size="12" fill="#4b5563">{time}</text>'
