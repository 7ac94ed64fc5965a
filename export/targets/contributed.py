"""What several targets do with ONNX Runtime's contributed kernels (domain com.microsoft)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from qwonnx.export.lowering.constants import integers
from qwonnx.export.lowering.rewrite import Attributes, attribute, call, own_nodes, replace, required, sizes

MICROSOFT = "com.microsoft"
# Of MoE and QMoE: SiLU of even rows times odd rows, and the weights of the chosen experts add up to 1.
SWIGLU: dict[str, int | float | str] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
    "normalize_routing_weights": 1,
}


def lower_float_linear(graph: ir.Graph) -> None:
    """FusedMatMul multiplies by the transpose as stored; a Transpose before MatMul would store the weight twice."""
    for node in own_nodes(graph, "Linear"):
        replace(node, [call("FusedMatMul", node.inputs, {"transB": 1}, domain=MICROSOFT)])


def lower_embedding(graph: ir.Graph) -> None:
    """Rows are looked up, and turned into floats if they are codes."""
    for node in own_nodes(graph, "Embedding"):
        input_ids, weight = required(node.inputs)
        replace(node, [call("Gather", [weight, input_ids], {"axis": 0}, domain="")])
    for op_type in ("QuantizedEmbedding", "AffineEmbedding"):
        for node in own_nodes(graph, op_type):
            input_ids, codes, scales, *zero_points = required(node.inputs)
            bits = int(attribute(node, "bits"))
            attributes = {
                "bits": bits,
                "block_size": block_size(codes, scales, bits),
                "gather_axis": 0,
                "quantize_axis": 1,
            }
            inputs = [codes, input_ids, scales, *zero_points]
            replace(node, [call("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)])


def lower_float_experts(graph: ir.Graph) -> None:
    """MoE takes experts that are not quantised."""
    for node in own_nodes(graph, "RoutedExperts"):
        _, _, gate_up, down = required(node.inputs)
        attributes = SWIGLU | {"k": attribute(node, "top_k")}
        replace_experts(graph, node, "MoE", [gate_up, None, down], attributes, MICROSOFT)


def replace_experts(
    graph: ir.Graph,
    node: ir.Node,
    op_type: str,
    weights: Sequence[ir.Value | None],
    attributes: Attributes,
    domain: str,
) -> None:
    """Replace routed experts by the router's logits, [tokens, experts], and an operator that takes them."""
    x, router = required(node.inputs)[:2]
    logits = call("Linear", [x, router])
    flat = call("Reshape", [logits.outputs[0], integers(graph, [-1, sizes(router)[0]])], domain="")
    routed = call(op_type, [x, flat.outputs[0], *weights], attributes, domain=domain)
    replace(node, [logits, flat, routed])


def block_size(codes: ir.Value, scales: ir.Value, bits: int) -> int:
    """Input features that share a scale."""
    return sizes(codes)[-1] * 8 // bits // sizes(scales)[-1]
