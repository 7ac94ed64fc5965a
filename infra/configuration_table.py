"""The table of all variables in docs/configuration.md: `python -m infra.configuration_table` writes it anew."""

from __future__ import annotations

from pathlib import Path

from qwonnx.handlers.configuration.environment import Variable, variables

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
_BEGIN, _END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def with_table(page: str) -> str:
    """The page with the table between its two marks."""
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    lines = ["| Variable | Default | Meaning |", "|---|---|---|", *map(_line, variables())]
    table = "".join(f"{line}\n" for line in lines)
    return f"{before}{_BEGIN}{table}{_END}{after}"


def _line(variable: Variable) -> str:
    default = f"`{variable.default}`" if variable.default else ""
    return f"| `{variable.name}` | {default} | {variable.meaning} |"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
