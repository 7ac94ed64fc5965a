"""Replace operators on float weights by their twins on codes, if a weight is stored in few bits.

Quantized operators take codes and scales, and every zero point is in the middle of the codes; Affine operators also
take zero points.
"""

from __future__ import annotations

import onnx_ir as ir

from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.lowering.rewrite import attribute, call, own_nodes, replace, required
from qwonnx.export.quantization.recipe import WeightStorage


def quantize_weights(graph: ir.Graph, weights: GraphWeights) -> None:
    """Embedding, Linear and RoutedExperts become QuantizedEmbedding, AffineEmbedding and so on.

    Raises:
        RecipeError: only one of a layer's two expert tensors is kept in floating point.
    """
    for op_type in ("Embedding", "Linear"):
        for node in own_nodes(graph, op_type):
            x, weight = required(node.inputs)
            if weights.is_weight(weight) and (storage := weights.storage(str(weight.name))).is_quantized:
                twin = _prefix(storage) + op_type
                replace(node, [call(twin, [x, *weights.quantize(weight)], {"bits": storage.bits})])
    for node in own_nodes(graph, "RoutedExperts"):
        x, router, gate_up, down = required(node.inputs)
        storages = [weights.storage(str(weight.name)) for weight in (gate_up, down)]
        if any(storage.is_quantized for storage in storages):
            if not all(storage.is_quantized for storage in storages):
                raise RecipeError(f"{gate_up.name} and {down.name} are stored as one: quantise both, or neither")
            attributes = {
                "top_k": attribute(node, "top_k"),
                "gate_up_bits": storages[0].bits,
                "down_bits": storages[1].bits,
            }
            twin = _prefix(storages[0]) + "RoutedExperts"
            assert _prefix(storages[1]) == _prefix(storages[0]), "both have zero points, or neither"
            replace(node, [call(twin, [x, router, *weights.quantize(gate_up), *weights.quantize(down)], attributes)])


def _prefix(storage: WeightStorage) -> str:
    return "Affine" if storage.has_zero_points else "Quantized"
