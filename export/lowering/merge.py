"""Join the small projections of one input into one matrix product.

In a step of one token, a small product takes as long to start as to compute; joined siblings start once. A large
product keeps all cores busy by itself, and for a chunk of a prompt a Split of its output costs more than its start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from qwonnx.export.lowering.constants import integers
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.lowering.rewrite import call, own_nodes, required, sizes
from qwonnx.export.lowering.siblings import Projection, joined_name, sibling_groups


def merge_projections(graph: ir.Graph, weights: GraphWeights) -> None:
    """Replace the small Linear nodes that share input and storage by one Linear and a Split of its output."""
    for nodes in sibling_groups(_projections(graph, weights)):
        _merge(graph, weights, nodes)


def _projections(graph: ir.Graph, weights: GraphWeights) -> Iterator[Projection[ir.Node]]:
    for node in own_nodes(graph, "Linear"):
        x, weight = required(node.inputs)
        if weights.is_weight(weight):
            name = str(weight.name)
            yield Projection(node, x, weights.storage(name), math.prod(sizes(weight)), name)


def _merge(graph: ir.Graph, weights: GraphWeights, nodes: list[ir.Node]) -> None:
    x = required(nodes[0].inputs)[0]
    matrices = [required(node.inputs)[1] for node in nodes]
    rows = [sizes(matrix)[0] for matrix in matrices]
    outputs = [node.outputs[0] for node in nodes]
    joined = weights.join(matrices, joined_name([str(matrix.name) for matrix in matrices]))
    linear = call("Linear", [x, joined])
    split = call("Split", [linear.outputs[0], integers(graph, rows)], {"axis": -1}, domain="", num_outputs=len(rows))
    for before, after in zip(outputs, split.outputs, strict=True):
        after.name, after.shape, after.type = before.name, before.shape, before.type
    ir.convenience.replace_nodes_and_values(graph, nodes[0], nodes, [linear, split], outputs, list(split.outputs))
