"""The weights of all graphs of an artifact: each is stored once, even if several graphs use it."""

from __future__ import annotations

from collections.abc import Iterable

from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.weight_files.layout import ExternalTensor
from qwonnx.export.weight_files.weight_item import WeightItem


class SharedWeights:
    """The weight tables of several graphs, as one.

    Args:
        tables: of the graphs, in the order in which their weights are written.

    Raises:
        RecipeError: two graphs store one name in different ways.
    """

    def __init__(self, tables: Iterable[GraphWeights]) -> None:
        self._tables = tuple(tables)
        items: dict[str, WeightItem] = {}
        for item in (item for table in self._tables for item in table.items()):
            if items.setdefault(item.name, item) != item:
                raise RecipeError(f"two graphs store {item.name} in different ways: give it one storage")
        self.items = tuple(items.values())

    @property
    def names(self) -> frozenset[str]:
        """The logical weights that are stored, by name."""
        return frozenset(name for item in self.items for name in item.weight_names)

    def attach(self, written: dict[str, ExternalTensor]) -> None:
        """Point every graph's initializers at the bytes that the weight stage wrote."""
        for table in self._tables:
            table.attach(written)
