"""Adds to a decoder's graph one output for each layer of experts: the scores of its router.

    com.microsoft MoE, QMoE            their second input, [tokens, experts]
    ai.qwonnx [...]Experts             the same
    ai.qwonnx [...]RoutedExperts       x [1, tokens, H] times the transposed router [experts, H], as in their bodies

The file is not changed, and its weights are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from qwonnx.export.errors import VerificationError, first_line
from qwonnx.export.operators.ops import DOMAIN

_KERNELS = {("com.microsoft", kernel) for kernel in ("MoE", "QMoE")}
_KERNELS |= {(DOMAIN, prefix + "Experts") for prefix in ("Quantized", "Affine")}
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
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # an exception of protobuf
        reason = first_line(error)
        raise VerificationError(f"{path} is not an ONNX file ({reason}): export the checkpoint again") from error
    graph = model.graph
    names: list[str] = []
    for node in list(graph.node):  # in the order of the layers, because each depends on the one before
        kind = node.domain, node.op_type
        if kind in _KERNELS:
            names.append(node.input[1])
        elif kind in _OPERATORS:
            x, router = node.input[:2]
            name = f"router_scores.{len(names)}"
            graph.node.append(helper.make_node("Transpose", [router], [f"{name}.weight"], perm=[1, 0]))
            graph.node.append(helper.make_node("MatMul", [x, f"{name}.weight"], [name]))
            names.append(name)
    graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return RoutedGraph(model.SerializeToString(), tuple(names))
