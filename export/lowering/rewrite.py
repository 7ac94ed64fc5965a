"""Replaces a node of a graph by others: the basic step of every lowering."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from qwonnx.export.operators.ops import DOMAIN

Attributes = Mapping[str, int | float | str | ir.Graph | Sequence[int]]


def own_nodes(graph: ir.Graph, op_type: str) -> Iterator[ir.Node]:
    """The graph's nodes of one of our operators; the graph may be changed while iterating."""
    return (node for node in tuple(graph) if node.domain == DOMAIN and node.op_type == op_type)


def call(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Attributes | None = None,
    *,
    domain: str = DOMAIN,
    num_outputs: int = 1,
) -> ir.Node:
    """A new node that is not in a graph yet. Attributes take their types from Python."""
    return ir.node(op_type, inputs, dict(attributes or {}), domain=domain, num_outputs=num_outputs)


def replace(old: ir.Node, new: Sequence[ir.Node], outputs: Sequence[ir.Value] | None = None) -> None:
    """Replace a node by new ones; the last one's outputs, or the given ones, replace the old outputs."""
    assert old.graph is not None
    outputs = new[-1].outputs if outputs is None else outputs
    for before, after in zip(old.outputs, outputs, strict=True):
        after.name, after.shape, after.type = before.name, before.shape, before.type
    ir.convenience.replace_nodes_and_values(old.graph, old, [old], list(new), list(old.outputs), list(outputs))


def attribute(node: ir.Node, name: str) -> int | float:
    """The value of a number attribute."""
    value = node.attributes[name].value
    assert isinstance(value, int | float)
    return value


def sizes(value: ir.Value) -> tuple[int, ...]:
    """The shape of a weight or a state; a size that is known only when the graph runs is 0."""
    assert value.shape is not None
    return tuple(size if isinstance(size, int) else 0 for size in value.shape)


def required(values: Sequence[ir.Value | None]) -> list[ir.Value]:
    """A node's inputs, without absent ones."""
    return [value for value in values if value is not None]
