"""Replace operators on float weights by their Quantized twins, where the recipe stores the weight in few bits."""

from __future__ import annotations

import onnx_ir as ir

from qwonnx.export.errors import RecipeError
from qwonnx.export.lower.graph_weights import GraphWeights
from qwonnx.export.lower.rewrite import attribute, call, own_nodes, replace, required


def quantize_weights(graph: ir.Graph, weights: GraphWeights) -> None:
    """Embedding, Linear and RoutedExperts become QuantizedEmbedding, QuantizedLinear and QuantizedRoutedExperts.

    Raises:
        RecipeError: the recipe keeps only one of a layer's two expert tensors in floating point.
    """
    for op_type in ("Embedding", "Linear"):
        for node in own_nodes(graph, op_type):
            x, weight = required(node.inputs)
            if weights.is_weight(weight) and (storage := weights.storage(str(weight.name))).is_quantized:
                codes, scales = weights.quantize(weight)
                replace(node, [call(f"Quantized{op_type}", [x, codes, scales], {"bits": storage.bits})])
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
            inputs = [x, router, *weights.quantize(gate_up), *weights.quantize(down)]
            replace(node, [call("QuantizedRoutedExperts", inputs, attributes)])
