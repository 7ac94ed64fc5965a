"""Pictures of what the pages have as tables: `python -m infra.site.plots` writes them into docs/.

A picture is drawn from its page's own table, so that both always say the same. A test draws them again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 400, 80, 130, 40, 60
_LINE, _LABEL = 15, 180  # height and width of a label
_INK, _FAINT, _TEXT = "#1f6feb", "#8886", "#777"  # readable on white and on black


@dataclass(frozen=True, slots=True)
class Point:
    """A labelled point."""

    label: str
    x: float
    y: float


def table(page: str, first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading, without emphasis.

    Raises:
        ValueError: the page has no such table.
    """
    lines = iter((DOCS / page).read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {first_heading} |"):
            next(lines)  # the rule
            return [_cells(row) for row in _until_blank(lines)]
    raise ValueError(f"{page} has no table whose first column is {first_heading!r}")


def _until_blank(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("|"):
            return
        yield line


def _cells(row: str) -> list[str]:
    return [cell.strip().replace("**", "") for cell in row.strip("|").split("|")]


def _number(text: str) -> float:
    match = re.search(r"[\d.]+", text.replace(",", ""))
    if match is None:
        raise ValueError(f"{text!r} has no number")
    return float(match.group())


def loss_by_size() -> str:
    """KL of each recipe over the size of 35B-A3B's weights: quantization.md's table of recipes."""
    points = [Point(row[0], _number(row[1]), _number(row[3])) for row in table("quantization.md", "Recipe")]
    return _scatter("KL divergence to the float model (log), by recipe", "GB of 35B-A3B's weights", points)


def _scatter(title: str, x_title: str, points: Sequence[Point]) -> str:
    """Points over a linear x and a logarithmic y."""
    low_x, high_x = math.floor(min(p.x for p in points)), math.ceil(max(p.x for p in points))
    low_y = math.floor(math.log10(min(p.y for p in points)))
    high_y = math.ceil(math.log10(max(p.y for p in points)))

    def x_of(value: float) -> float:
        return _LEFT + _WIDTH * (value - low_x) / (high_x - low_x)

    def y_of(value: float) -> float:
        return _TOP + _HEIGHT * (high_y - math.log10(value)) / (high_y - low_y)

    parts = [_opening(title)]
    for power in range(low_y, high_y + 1):
        y = y_of(10.0**power)
        parts.append(f'  <path d="M{_LEFT} {y:.1f}h{_WIDTH}" stroke="{_FAINT}"/>')
        parts.append(f'  <text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    step = max(1, round((high_x - low_x) / 6))
    for value in range(low_x, high_x + 1, step):
        x = x_of(value)
        parts.append(f'  <text x="{x:.1f}" y="{_TOP + _HEIGHT + 20}" text-anchor="middle">{value}</text>')
    parts.append(f'  <text x="{_LEFT + _WIDTH}" y="{_TOP + _HEIGHT + 42}" text-anchor="end">{escape(x_title)}</text>')
    labels: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: -point.y):
        x, y = x_of(point.x), y_of(point.y)
        below = y + 4
        while any(abs(below - other) < _LINE and abs(x - left) < _LABEL for left, other in labels):
            below += _LINE - abs(below - labels[-1][1])
        labels.append((x, below))
        parts.append(f'  <circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_INK}"/>')
        parts.append(f'  <text x="{x + 9:.1f}" y="{below:.1f}">{escape(point.label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _opening(title: str) -> str:
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="13" fill="{_TEXT}" role="img" aria-label="{escape(title)}">\n'
        f'  <text x="{_LEFT}" y="20" font-weight="600">{escape(title)}</text>'
    )


PICTURES: dict[str, Callable[[], str]] = {"loss-by-size.svg": loss_by_size}


def main() -> None:
    for name, draw in PICTURES.items():
        (DOCS / name).write_text(draw(), encoding="utf-8")
        print(DOCS / name)


if __name__ == "__main__":
    main()
