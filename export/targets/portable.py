"""The portable target: our operators stay, each with its function body, for any runtime that knows opset 23."""

from __future__ import annotations

import onnx_ir as ir

from qwonnx.export.lowering.functions import add_function_bodies
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.lowering.quantized_ops import quantize_weights


def lower_to_portable(model: ir.Model, weights: GraphWeights) -> None:
    """Lower a traced model in place."""
    quantize_weights(model.graph, weights)
    add_function_bodies(model)
