"""Adds to a decoder's graph one output for each layer of experts: the scores of its router.

    com.microsoft MoE, QMoE            their second input, [tokens, experts]
    ai.qwonnx [...]Experts             the same
    ai.qwonnx [...]Mixture             computed from its first four inputs, as in its function
    ai.qwonnx [...]RoutedExperts       x [1, tokens, H] times the transposed router [experts, H], as in their bodies

The file is not changed, and its weights are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from qwonnx.export.evaluation.decoder_graph import read_decoder_graph
from qwonnx.export.operators.ops import DOMAIN

_KERNELS = {("com.microsoft", kernel) for kernel in ("MoE", "QMoE")}
_KERNELS |= {(DOMAIN, prefix + "Experts") for prefix in ("Quantized", "Affine")}
_FUSED = {(DOMAIN, prefix + "Mixture") for prefix in ("Quantized", "Affine")}
_OPERATORS = {(DOMAIN, prefix + "RoutedExperts") for prefix in ("", "Quantized", "Affine")}


@dataclass(frozen=True, slots=True)
class RoutedGraph:
    """The model, serialised, and the names of the new outputs in the order of the layers: float32 [..., experts]."""

    graph: bytes
    outputs: tuple[str, ...]


def with_router_outputs(path: Path) -> RoutedGraph:
    """Read a decoder and add the outputs.

    Raises:
        VerificationError: it is not an ONNX file.
    """
    model = read_decoder_graph(path)
    graph = model.graph
    names: list[str] = []
    for node in list(graph.node):  # in the order of the layers, because each depends on the one before
        kind = node.domain, node.op_type
        if kind in _KERNELS:
            names.append(node.input[1])
        elif kind in _FUSED:
            names.append(f"router_scores.{len(names)}")
            graph.node.extend(_scores_of_fused(node, names[-1]))
        elif kind in _OPERATORS:
            x, router = node.input[:2]
            name = f"router_scores.{len(names)}"
            graph.node.append(helper.make_node("Transpose", [router], [f"{name}.weight"], perm=[1, 0]))
            graph.node.append(helper.make_node("MatMul", [x, f"{name}.weight"], [name]))
            names.append(name)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return RoutedGraph(model.SerializeToString(), tuple(names))


def _scores_of_fused(node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """The residual sum, its norm, and the product with the router, without the shared expert's gate."""
    residual, mixed, norm, gates = node.input[:4]
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    epsilon, widths = attributes["epsilon"], attributes["gate_widths"]
    return [
        helper.make_node("Add", [residual, mixed], [f"{name}.sum"]),
        helper.make_node("RMSNormalization", [f"{name}.sum", norm], [f"{name}.x"], axis=-1, epsilon=epsilon),
        helper.make_node("Cast", [gates], [f"{name}.floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", [f"{name}.floats"], [f"{name}.weight"], perm=[1, 0]),
        helper.make_node("MatMul", [f"{name}.x", f"{name}.weight"], [f"{name}.all"]),
        helper.make_node("Constant", [], [f"{name}.widths"], value_ints=widths),
        helper.make_node("Split", [f"{name}.all", f"{name}.widths"], [name, f"{name}.shared"], axis=-1),
    ]
