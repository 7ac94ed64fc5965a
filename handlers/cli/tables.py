"""Numbers and tables of the commands. Texts of a manifest are shown as they are, not as markup."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from qwonnx.handlers.cli.fitting_table import FittingTable
from qwonnx.runtime.artifact.manifest import QuantizationFacts
from qwonnx.runtime.quantities import bytes_text


def count_of(number: int) -> str:
    """A count to print: 34660610688 -> "34.66 B" (billions)."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return str(number)


def bits_per_weight(num_bytes: int, num_parameters: int) -> str:
    return f"{8 * num_bytes / num_parameters:.2f}" if num_parameters else "-"


def weights_table(quantization: QuantizationFacts) -> FittingTable:
    """Sizes by kind of weight, codes and scales together, and their sum."""
    groups = quantization.groups
    num_bytes, num_parameters = sum(g.num_bytes for g in groups), sum(g.num_parameters for g in groups)
    table = FittingTable(title="Weights", title_justify="left", show_footer=True)
    table.add_column("kind", "total", no_wrap=True)
    table.add_column("stored as", Text(quantization.weights))
    table.add_column("tensors", str(sum(g.num_tensors for g in groups)), justify="right", no_wrap=True)
    table.add_column("params", count_of(num_parameters), justify="right", no_wrap=True)
    table.add_column("size", bytes_text(num_bytes), justify="right", no_wrap=True)
    table.add_column("bits/weight", bits_per_weight(num_bytes, num_parameters), justify="right", no_wrap=True)
    for group in groups:
        bits = bits_per_weight(group.num_bytes, group.num_parameters)
        size = bytes_text(group.num_bytes)
        add_row(table, group.kind, group.storage, group.num_tensors, count_of(group.num_parameters), size, bits)
    return table


def facts_table(title: str, facts: dict[str, object]) -> FittingTable:
    """Names and values."""
    table = FittingTable(title=title, title_justify="left", show_header=False)
    table.add_column("name")
    table.add_column("value", overflow="fold")
    for name, value in facts.items():
        add_row(table, name, value)
    return table


def numbers_table(first: str, *others: str) -> FittingTable:
    """An empty table without frame: names in the first column, numbers in the others."""
    table = FittingTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for title in others:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def add_row(table: Table, *values: object) -> None:
    """A row of values, each as its text."""
    table.add_row(*(Text(str(value)) for value in values))
