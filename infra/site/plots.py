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
_LINE, _LABEL = 20, 180  # height and width of a label and the space around it
_INKS = ("#1f6feb", "#2da44e", "#bf8700", "#cf222e", "#8250df")  # readable on white and on black
_FAINT, _TEXT = "#8886", "#777"


@dataclass(frozen=True, slots=True)
class Point:
    """A labelled point."""

    label: str
    x: float
    y: float


def table(page: str, heading: str) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows of the table whose heading begins with this text, without emphasis.

    Raises:
        ValueError: the page has no such table.
    """
    lines = iter((DOCS / page).read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {heading}"):
            next(lines)  # the rule
            return _cells(line), [_cells(row) for row in _until_blank(lines)]
    raise ValueError(f"{page} has no table whose heading begins with {heading!r}")


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
    points = [
        Point(row[0].replace("none (4 bits)", "4 bits"), _number(row[1]), _number(row[3]))
        for row in table("quantization.md", "Recipe | 35B-A3B's weights")[1]
    ]
    return _scatter("KL divergence to the float model (log), by recipe", "GB of 35B-A3B's weights", points)


def speed_by_size() -> str:
    """Tokens/s to expect of each size on each machine: machines.md's second table of models."""
    heading, rows = table("machines.md", "Model | Read per token")
    machines = [",".join(cell.split(",")[:2]) for cell in heading[2:]]
    sizes = [row[0] for row in rows]
    series = [
        (name, [(sizes.index(row[0]), _number(row[2 + index])) for row in rows if row[2 + index] != "-"])
        for index, name in enumerate(machines)
    ]
    return _lines("Tokens/s to expect of one sequence (log): an estimate", sizes, series)


def _lines(title: str, names: Sequence[str], series: Sequence[tuple[str, list[tuple[int, float]]]]) -> str:
    """Series over names in a row, with a logarithmic y."""
    values = [value for _, points in series for _, value in points]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def place(index: int, value: float) -> tuple[float, float]:
        x = _LEFT + _WIDTH * (index + 0.5) / len(names)
        return x, _TOP + _HEIGHT * (high - math.log10(value)) / (high - low)

    parts = [_opening(title), *_rules(low, high)]
    for index, name in enumerate(names):
        x, _ = place(index, 1.0)
        parts.append(f'  <text x="{x:.1f}" y="{_TOP + _HEIGHT + 20}" text-anchor="middle">{escape(name)}</text>')
    for ink, (name, points) in zip(_INKS, series, strict=False):
        placed = [place(index, value) for index, value in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'  <polyline points="{path}" fill="none" stroke="{ink}" stroke-width="2"/>')
        parts += [f'  <circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{ink}"/>' for x, y in placed]
        x, y = placed[-1]
        parts.append(f'  <text x="{x + 9:.1f}" y="{y + 4:.1f}" fill="{ink}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _rules(low: int, high: int) -> Iterator[str]:
    """A line and a number at each power of ten."""
    for power in range(low, high + 1):
        y = _TOP + _HEIGHT * (high - power) / (high - low)
        yield f'  <path d="M{_LEFT} {y:.1f}h{_WIDTH}" stroke="{_FAINT}"/>'
        yield f'  <text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'


def _scatter(title: str, x_title: str, points: Sequence[Point]) -> str:
    """Points over a linear x and a logarithmic y."""
    low_x, high_x = math.floor(min(p.x for p in points)), math.ceil(max(p.x for p in points))
    low_y = math.floor(math.log10(min(p.y for p in points)))
    high_y = math.ceil(math.log10(max(p.y for p in points)))

    def x_of(value: float) -> float:
        return _LEFT + _WIDTH * (value - low_x) / (high_x - low_x)

    def y_of(value: float) -> float:
        return _TOP + _HEIGHT * (high_y - math.log10(value)) / (high_y - low_y)

    parts = [_opening(title), *_rules(low_y, high_y)]
    step = max(1, round((high_x - low_x) / 6))
    for value in range(low_x, high_x + 1, step):
        x = x_of(value)
        parts.append(f'  <text x="{x:.1f}" y="{_TOP + _HEIGHT + 20}" text-anchor="middle">{value}</text>')
    parts.append(f'  <text x="{_LEFT + _WIDTH}" y="{_TOP + _HEIGHT + 42}" text-anchor="end">{escape(x_title)}</text>')
    labels: list[tuple[float, float]] = []  # right of their points
    for point in sorted(points, key=lambda point: -point.y):
        x, y = x_of(point.x), y_of(point.y)
        on_left = any(abs(y - other) < _LINE and abs(x - left) < _LABEL for left, other in labels)
        if not on_left:
            labels.append((x, y))
        parts.append(f'  <circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{_INKS[0]}"/>')
        place = f'x="{x - 9:.1f}" text-anchor="end"' if on_left else f'x="{x + 9:.1f}"'
        parts.append(f'  <text {place} y="{y + 4:.1f}">{escape(point.label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _opening(title: str) -> str:
    width, height = _LEFT + _WIDTH + _RIGHT, _TOP + _HEIGHT + _BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="13" fill="{_TEXT}" role="img" aria-label="{escape(title)}">\n'
        f'  <text x="{_LEFT}" y="20" font-weight="600">{escape(title)}</text>'
    )


PICTURES: dict[str, Callable[[], str]] = {"loss-by-size.svg": loss_by_size, "speed-by-size.svg": speed_by_size}


def main() -> None:
    for name, draw in PICTURES.items():
        (DOCS / name).write_text(draw(), encoding="utf-8")
        print(DOCS / name)


if __name__ == "__main__":
    main()
