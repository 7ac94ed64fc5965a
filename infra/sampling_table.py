"""The table of sampling parameters in docs/sampling.md: `python -m infra.sampling_table` writes it anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwonnx.runtime.sampling.parameter import LARGE, Api, Parameter
from qwonnx.runtime.sampling.params import PARAMETERS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sampling.md"
_BEGIN, _END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
_TITLES = ("Parameter", "What it does", "Values", "Chat and text completions", "Responses", "Messages", "Ollama")


def with_table(page: str) -> str:
    """The page with the table between its two marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    rows = [_TITLES, ("---",) * len(_TITLES), *(_row(*each) for each in PARAMETERS.items())]
    return before + _BEGIN + "".join(f"| {' | '.join(row)} |\n" for row in rows) + _END + after


def _row(name: str, parameter: Parameter) -> tuple[str, ...]:
    names = (f"`{parameter.names[api]}`" if api in parameter.names else "" for api in Api)
    return f"`{name}`", parameter.help.removesuffix("."), ", ".join(_values(parameter)), *names


def _values(parameter: Parameter) -> Iterator[str]:
    """In requests of the API whose names are ours."""
    yield parameter.kind.value
    bounds = parameter.bounds
    if bounds is None:
        return
    if bounds.gt is not None:
        yield f"more than {bounds.gt:g}"
    if bounds.ge is not None:
        yield f"at least {bounds.ge:g}"
    if bounds.le is not None:
        yield f"at most {bounds.le:g}"
    if bounds.lt is not None and bounds.lt != LARGE:
        yield f"less than {bounds.lt:g}"
    if bounds.max_length is not None:
        yield f"at most {bounds.max_length} of them"
    if parameter.keeps_all:
        yield "below 1 keeps all"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
