"""Builds the functions of operators that native kernels run, out of nodes of ONNX Runtime's kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qwonnx.export.lowering.functions import used_operators
from qwonnx.export.operators.ops import DOMAIN, VERSION
from qwonnx.export.targets.contributed import MICROSOFT

_OPSETS = {"": 23, MICROSOFT: 1}


@dataclass(frozen=True, slots=True)
class Reference:
    """The value of a function's attribute, for an attribute of a node in its body."""

    name: str


class FunctionBody:
    """Builds a function of the domain ai.qwonnx.

    Args:
        name: of the operator.
        inputs: their names, all required.
        attributes: their types by name, all required. Nodes may have more; ONNX Runtime passes those to kernels only.
    """

    def __init__(self, name: str, inputs: Sequence[str], attributes: Mapping[str, ir.AttributeType]) -> None:
        self._name = name
        self._attributes = attributes
        self._nodes: list[ir.Node] = []
        self._integers: dict[tuple[int, ...], ir.Value] = {}
        self.inputs = [ir.Value(name=each) for each in inputs]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | str | ir.Graph | Sequence[int] | Reference] | None = None,
        *,
        domain: str = MICROSOFT,
        num_outputs: int = 1,
    ) -> list[ir.Value]:
        """Add a node, and return its outputs."""
        given = dict(attributes or {})
        plain = {name: value for name, value in given.items() if not isinstance(value, Reference)}
        node = ir.node(op_type, inputs, plain, domain=domain, num_outputs=num_outputs)
        for name, value in given.items():
            if isinstance(value, Reference):
                node.attributes[name] = ir.RefAttr(name, value.name, self._attributes[value.name])
        for index, output in enumerate(node.outputs):
            output.name = f"{op_type}.{len(self._nodes)}.{index}"
        self._nodes.append(node)
        return list(node.outputs)

    def integers(self, *values: int) -> ir.Value:
        """An int64 vector, one node for each that is used."""
        if values not in self._integers:
            (self._integers[values],) = self.add("Constant", [], {"value_ints": values}, domain="")
        return self._integers[values]

    def function(self, outputs: Sequence[ir.Value]) -> ir.Function:
        """The function that yields these values."""
        graph = ir.Graph(self.inputs, outputs, nodes=self._nodes, opset_imports=dict(_OPSETS), name=self._name)
        if used_operators(graph):
            graph.opset_imports[DOMAIN] = VERSION
        declared = [ir.Attr(name, kind, None) for name, kind in self._attributes.items()]
        return ir.Function(DOMAIN, self._name, graph=graph, attributes=declared)
