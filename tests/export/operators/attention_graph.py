"""One attention operator alone in a graph, as a target lowers it, for the tests and the benchmarks."""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx_ir as ir

from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.operators.op_bodies import OPSET
from qwonnx.export.operators.ops import DOMAIN, VERSION
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.targets.cpu_lowering import lower_to_cpu
from qwonnx.export.targets.target import Activations
from tests.runtime.native.attention import OPERATORS, OUTPUTS

TYPES = {"float32": ir.DataType.FLOAT, "int8": ir.DataType.INT8, "int4": ir.DataType.UINT8}


def cpu_attention(kv: str, *, num_heads: int, num_kv_heads: int, head_dim: int) -> onnx.ModelProto:
    """The operator over a cache of this kind, lowered to the CPU's kernels: a node and its function.

    Inputs: those of its function body, by their names, and input_ids [batch, sequence], used only for its shape.
    Outputs: OUTPUTS.
    """
    width, kv_width = num_heads * head_dim, num_kv_heads * head_dim
    buffer = ("batch", num_kv_heads, "max_model_len", head_dim // 2 if kv == "int4" else head_dim)
    values = [
        _value("query", ir.DataType.FLOAT, ("batch", "sequence", width)),
        _value("key", ir.DataType.FLOAT, ("batch", "sequence", kv_width)),
        _value("value", ir.DataType.FLOAT, ("batch", "sequence", kv_width)),
        _value("gate", ir.DataType.FLOAT, ("batch", "sequence", width)),
        _value("past_key", TYPES[kv], buffer),
        _value("past_value", TYPES[kv], buffer),
        _value("past_lengths", ir.DataType.INT64, ("batch",)),
    ]
    if kv != "float32":
        scale = (1, num_kv_heads, 1, head_dim)
        values += [_value(name, ir.DataType.FLOAT, scale) for name in ("key_scale", "value_scale")]
    input_ids = _value("input_ids", ir.DataType.INT64, ("batch", "sequence"))
    node = ir.node(OPERATORS[kv], values, {"num_heads": num_heads}, domain=DOMAIN, num_outputs=3)
    for output, name, like in zip(node.outputs, OUTPUTS, (values[0], values[4], values[5]), strict=True):
        output.name, output.type, output.shape = name, like.type, like.shape
    opsets = {"": OPSET, DOMAIN: VERSION}
    graph = ir.Graph([*values, input_ids], node.outputs, nodes=[node], opset_imports=opsets, name="attention")
    model = ir.Model(graph, ir_version=10)
    weights = GraphWeights.of_traced(graph, Recipe.preset("fp32"), {})
    lower_to_cpu(model, weights, Activations.FLOAT32)
    proto: onnx.ModelProto = ir.to_proto(model)
    return proto


def inlined_cpu_attention(kv: str, *, num_heads: int, num_kv_heads: int, head_dim: int) -> onnx.ModelProto:
    """The same with the nodes that run without native kernels."""
    model = cpu_attention(kv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    inlined: onnx.ModelProto = onnx.inliner.inline_selected_functions(model, [(DOMAIN, OPERATORS[kv])])
    return inlined


def _value(name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
