"""Numbers and tables of the commands."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from qwonnx.handlers.cli.tables import (
    add_row,
    bits_per_weight,
    count_of,
    facts_table,
    numbers_table,
    weights_table,
)
from qwonnx.runtime.artifact.manifest import QuantizationFacts, WeightGroup

pytestmark = pytest.mark.fast


def shown(table: RenderableType) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1.00 K"), (1_500_000, "1.50 M"), (34_660_610_688, "34.66 B")]
)
def test_counts_are_in_powers_of_1000(number: int, text: str) -> None:
    assert count_of(number) == text


def test_bits_per_weight_and_of_no_weights() -> None:
    assert bits_per_weight(9, 16) == "4.50"
    assert bits_per_weight(0, 0) == "-"


def test_weights_have_a_row_for_each_kind_and_their_sum() -> None:
    groups = (WeightGroup("experts", "int4", 3, 2000, 1125), WeightGroup("router", "float32", 1, 10, 40))
    lines = shown(weights_table(QuantizationFacts("int4", 32, "int8", "float32", (), groups)))
    assert "experts int4 3 2.00 K 1.12 kB 4.50" in lines
    assert "router float32 1 10 40 B 32.00" in lines
    assert "total int4 4 2.01 K 1.17 kB 4.64" in lines


def test_what_a_manifest_says_is_no_markup() -> None:
    lines = shown(facts_table("Facts", {"name": "[bold]x[/bold]", "[red]": 5}))
    assert "name [bold]x[/bold]" in lines
    assert "[red] 5" in lines


def test_a_table_of_numbers_has_its_first_column_for_names() -> None:
    table = numbers_table("task", "asked", "right")
    add_row(table, "tools", 3, None)
    assert [column.justify for column in table.columns] == ["left", "right", "right"]
    assert "tools 3 None" in shown(table)
