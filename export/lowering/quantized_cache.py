"""Replace attention over a float cache by its twin over one with scales, and change the graph's states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from torch import Tensor

from qwonnx.export.lowering.rewrite import attribute, call, own_nodes, replace, required
from qwonnx.export.modeling.cache_spec import KvType
from qwonnx.export.quantization.cache_scales import CacheScales
from qwonnx.runtime.artifact.manifest import StateSpec

_OPERATORS = {
    KvType.INT8: "GatedAttentionInt8",
    KvType.INT4: "GatedAttentionInt4",
    KvType.FLOAT8: "GatedAttentionFloat8",
}
_TYPES = {"int8": ir.DataType.INT8, "uint8": ir.DataType.UINT8, "float8e4m3fn": ir.DataType.FLOAT8E4M3FN}


def quantize_cache(graph: ir.Graph, kv: KvType, states: Sequence[StateSpec], scales: Mapping[int, CacheScales]) -> None:
    """GatedAttention becomes the operator of its cache; keys and values take the types of `states`.

    Args:
        graph: as traced, with keys and values in float32.
        kv: one that is quantised.
        states: the new states of the graph (cache_spec.state_specs of this kv).
        scales: of every full-attention layer; they become small constants of the graph.
    """
    layer_of = {state.past: state.layer for state in states if state.kind == "key"}
    for node in own_nodes(graph, "GatedAttention"):
        inputs = required(node.inputs)
        layer = layer_of[str(inputs[4].name)]
        inputs += [
            _constant(graph, f"layers.{layer}.self_attn.key_scale", scales[layer].key),
            _constant(graph, f"layers.{layer}.self_attn.value_scale", scales[layer].value),
        ]
        attributes = {"num_heads": attribute(node, "num_heads")}
        replace(node, [call(_OPERATORS[kv], inputs, attributes, num_outputs=3)])
    values = {str(value.name): value for value in (*graph.inputs, *graph.outputs)}
    for state in states:
        if state.kind in ("key", "value"):
            for name in (state.past, state.present):
                _retype(values[name], state)


def _constant(graph: ir.Graph, name: str, scales: Tensor) -> ir.Value:
    """Scales [num_kv_heads, head_dim] as [1, num_kv_heads, 1, head_dim]: broadcast over a buffer of keys or values."""
    tensor = ir.tensor(scales[None, :, None, :].numpy(), dtype=ir.DataType.FLOAT, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
    value.const_value = tensor
    graph.initializers[name] = value
    return value


def _retype(value: ir.Value, state: StateSpec) -> None:
    """Give a graph's input or output its state's dtype, and its width: int4 packs two channels a byte."""
    assert value.shape is not None
    value.type = ir.TensorType(_TYPES[state.dtype])
    value.shape = ir.Shape([*value.shape[:-1], state.shape[-1]])
