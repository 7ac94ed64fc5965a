"""Tables on narrow terminals: nothing is cut, and what has no room follows below."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich import box
from rich.console import Console

from qwonnx.handlers.cli.fitting_table import FittingTable
from qwonnx.handlers.cli.inspect import inspect_tables
from qwonnx.handlers.cli.tables import add_row, facts_table, numbers_table
from qwonnx.runtime.artifact.folder import open_artifact

pytestmark = pytest.mark.fast


def shown(table: FittingTable, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue().splitlines()


def numbers() -> FittingTable:
    table = numbers_table("recipe", "artifact", "memory", "tokens/s")
    add_row(table, "balanced", "1.97 MB", "153 MB", 2840)
    table.add_section()
    add_row(table, "best", "2.14 MB", "154 MB", 2830)
    return table


def test_a_table_that_fits_is_as_it_was() -> None:
    lines = [" ".join(line.split()) for line in shown(numbers(), 80) if line.strip()]
    assert lines[0] == "recipe artifact memory tokens/s"
    assert "balanced 1.97 MB 153 MB 2840" in lines


@pytest.mark.parametrize("width", [20, 28, 36])
def test_columns_without_room_follow_beside_the_first_one(width: int) -> None:
    lines = shown(numbers(), width)
    assert all(len(line.rstrip()) <= width for line in lines)
    text = "\n".join(lines)
    for word in ("1.97 MB", "153 MB", "2840", "2.14 MB", "154 MB", "2830"):
        assert word in text
    assert text.count("balanced") == text.count("recipe") > 1
    assert "…" not in text


def test_a_title_and_a_footer_are_kept() -> None:
    table = FittingTable(title="Sizes", title_justify="left", show_footer=True, box=box.SIMPLE)
    table.add_column("kind", "total", no_wrap=True)
    for name in ("first", "second", "third"):
        table.add_column(name, "12345", no_wrap=True)
    add_row(table, "experts", "[b]1[/b]", 2, 3)
    text = "\n".join(shown(table, 30))
    assert text.count("Sizes") == 1
    assert text.count("total") == 2
    assert text.count("12345") == 3
    assert "[b]1[/b]" in text, "cells are no markup"


def test_a_long_value_is_folded_not_cut() -> None:
    lines = shown(facts_table("Facts", {"architecture": "Qwen3_5MoeForConditionalGeneration"}), 40)
    assert "…" not in "".join(lines)
    assert "Qwen3_5MoeForConditionalGeneration" in re.sub(r"[\s│]", "", "".join(lines))


def test_inspect_loses_nothing_on_60_columns(counting_folder: Path) -> None:
    opened = open_artifact(counting_folder)
    for table in inspect_tables(opened):
        assert isinstance(table, FittingTable)
        lines = shown(table, 60)
        assert all(len(line) <= 60 for line in lines)
        assert "…" not in "".join(lines)
