"""Lines of Prometheus' text format, version 0.0.4. A name without a colon is one of ours, and gets the prefix qwonnx_.

No library: what is written is counted already, and the format is lines. A test reads them with Prometheus' own parser.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from starlette.responses import Response

from qwonnx.runtime.engine.metrics import HistogramSnapshot

_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def page(lines: Iterable[str]) -> Response:
    """The lines as an answer."""
    text = "\n".join([*lines, ""])
    return Response(text, headers={"content-type": _MEDIA_TYPE, "cache-control": "no-store"})


def value(name: str, kind: str, meaning: str, number: float, labels: Mapping[str, str] | None = None) -> Iterator[str]:
    """A gauge or a counter with one line."""
    yield from head(name, kind, meaning)
    yield line(name, number, labels or {})


def histogram(
    name: str, meaning: str, counted: HistogramSnapshot, labels: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A histogram with its sum and count; without a meaning, the head was written already."""
    if meaning:
        yield from head(name, "histogram", meaning)
    others, count = dict(labels or {}), 0
    for bound, here in zip((*(f"{bound:g}" for bound in counted.bounds), "+Inf"), counted.counts, strict=True):
        count += here
        yield line(f"{name}_bucket", count, {**others, "le": bound})
    yield line(f"{name}_sum", counted.total, others)
    yield line(f"{name}_count", count, others)


def head(name: str, kind: str, meaning: str) -> Iterator[str]:
    """What precedes the lines of a name."""
    yield f"# HELP {_full(name)} {meaning}"
    yield f"# TYPE {_full(name)} {kind}"


def line(name: str, number: float, labels: Mapping[str, str]) -> str:
    """One line."""
    written = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{_full(name)}{f'{{{written}}}' if written else ''} {number!r}"


def _full(name: str) -> str:
    return name if ":" in name else f"qwonnx_{name}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
