"""The mixers of a layer for CUDA: full attention, and Gated DeltaNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qwonnx.export.checkpoint.weight_part import Form
from qwonnx.export.lowering.constants import integers
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.lowering.rewrite import Attributes, attribute, call, own_nodes, replace, required, sizes
from qwonnx.export.lowering.siblings import joined_name
from qwonnx.export.targets.contributed import MICROSOFT
from qwonnx.export.targets.cpu_functions import CACHE_BITS

# Bits of a number in the cache of an operator, 0 if it is a float without a scale.
_CACHE_BITS = CACHE_BITS | {"GatedAttentionFloat8": 8}


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Inputs of a step that the kernels take where the traced graph has others."""

    positions: ir.Value  # int64 [B, T]
    last_positions: ir.Value  # int32 [B]: the place of each row's last token in the cache
    total_sequence_length: ir.Value  # int32 []: on the host
    cos: ir.Value  # [max_position_embeddings, rotary_dim / 2]
    sin: ir.Value


def lower_attention(graph: ir.Graph, weights: GraphWeights, step: StepInputs) -> None:
    """One projection of queries, keys, values and gates, and the kernel, which norms, rotates, appends and attends."""
    for op_type, bits in _CACHE_BITS.items():
        for node in own_nodes(graph, op_type):
            query, key, value, _gate, past_key, past_value, _lengths, *scales = required(node.inputs)
            q_norm, q_proj = _projection(query)
            k_norm, k_proj = _projection(key)
            v_proj = producer(value, "Linear")
            x, queries = required(q_proj.inputs)
            matrices = [weights.select(queries, Form.QUERIES)]
            matrices += [required(each.inputs)[1] for each in (k_proj, v_proj)]
            matrices.append(weights.select(queries, Form.GATES))
            weights.drop(queries)
            rows = [sizes(matrix)[0] for matrix in matrices]
            new, parts = _products(graph, weights, x, matrices, [sum(rows[:3]), rows[3]] if not bits else rows)
            heads, width = int(attribute(node, "num_heads")), sizes(past_key)[1]
            norms = [required(each.inputs)[1] for each in (q_norm, k_norm)]
            attributes: dict[str, int | float | str] = {"num_heads": heads, "kv_num_heads": width, "do_rotary": 1}
            states: list[ir.Value | None] = [past_key, past_value, step.last_positions, step.total_sequence_length]
            states += [step.cos, step.sin, step.positions, None, None]
            if bits:
                for index, (norm, count) in enumerate(((norms[0], heads), (norms[1], width))):
                    epsilon = attribute((q_norm, k_norm)[index], "epsilon")
                    made = {"num_branches": count, "epsilon": epsilon}
                    normed = call("BranchwiseRMSNorm", [parts[index], norm], made, domain=MICROSOFT)
                    new.append(normed)
                    parts[index] = normed.outputs[0]
                attributes |= {
                    "k_quant_type": "PER_CHANNEL",
                    "v_quant_type": "PER_CHANNEL",
                    "kv_cache_bit_width": bits,
                }
                inputs = [*parts[:3], *states, *scales]
            else:
                attributes["qk_norm_epsilon"] = attribute(q_norm, "epsilon")
                inputs = [parts[0], None, None, *states, None, None, *norms]
            attended = call("GroupQueryAttention", inputs, attributes, domain=MICROSOFT, num_outputs=3)
            opened = call("Sigmoid", [parts[-1]], domain="")
            gated = call("Mul", [attended.outputs[0], opened.outputs[0]], domain="")
            replace(node, [*new, attended, opened, gated], [gated.outputs[0], *attended.outputs[1:]])


def _projection(rotated: ir.Value) -> tuple[ir.Node, ir.Node]:
    """The norm and the projection behind rotated queries or keys."""
    norm = producer(_input(producer(rotated, "RotaryEmbedding")), "RMSNormalization")
    return norm, producer(_input(norm), "Linear")


def producer(value: ir.Value, op_type: str) -> ir.Node:
    """The node of this type that makes a value, behind nodes that only change shapes."""
    node = value.producer()
    while node is not None and node.op_type in ("Reshape", "Split", "Identity"):
        node = _input(node).producer()
    assert node is not None
    assert node.op_type == op_type, f"{value.name} comes from {node.op_type}, not from {op_type}"
    return node


def _input(node: ir.Node) -> ir.Value:
    return required(node.inputs)[0]


def _products(
    graph: ir.Graph, weights: GraphWeights, x: ir.Value, matrices: Sequence[ir.Value], widths: Sequence[int]
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Products of x with matrices, side by side and then cut into widths: one product if all are stored alike."""
    if len({weights.storage(str(matrix.name)) for matrix in matrices}) == 1:
        joined = weights.join(list(matrices), joined_name([str(matrix.name) for matrix in matrices]))
        linear = call("Linear", [x, joined])
        nodes, whole = [linear], linear.outputs[0]
    else:
        nodes = [call("Linear", [x, matrix]) for matrix in matrices]
        side_by_side = call("Concat", [each.outputs[0] for each in nodes], {"axis": -1}, domain="")
        nodes.append(side_by_side)
        whole = side_by_side.outputs[0]
    split = call("Split", [whole, integers(graph, list(widths))], {"axis": -1}, domain="", num_outputs=len(widths))
    return [*nodes, split], list(split.outputs)


def lower_delta_net(graph: ir.Graph, weights: GraphWeights) -> None:
    for node in own_nodes(graph, "CausalConv"):
        x, taps, past = required(node.inputs)
        convolution: Attributes = {"activation": "silu", "channels_last": 1}
        inputs = [x, taps, None, past]
        replace(node, [call("CausalConvWithState", inputs, convolution, domain=MICROSOFT, num_outputs=2)])
    for node in own_nodes(graph, "GatedDeltaRule"):
        qkv, b, a, decay_scale, dt_bias, past = required(node.inputs)
        projections = [producer(value, "Linear") for value in (b, a)]
        x, matrices = _input(projections[0]), [required(each.inputs)[1] for each in projections]
        joined = weights.join(matrices, joined_name([str(matrix.name) for matrix in matrices]))
        product = call("Linear", [x, joined])
        exact = call("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT.value}, domain="")
        halves = call("Split", [exact.outputs[0]], {"axis": -1, "num_outputs": 2}, domain="", num_outputs=2)
        logarithm = weights.select(decay_scale, Form.LOGARITHM)
        weights.drop(decay_scale)
        weights.keep_float32(logarithm)
        weights.keep_float32(dt_bias)
        _, num_heads, key_dim, value_dim = sizes(past)
        key_width = int(attribute(node, "num_key_heads")) * key_dim
        # The kernel takes them side by side too, and then copies each of them.
        widths = integers(graph, [key_width, key_width, num_heads * value_dim])
        apart = call("Split", [qkv, widths], {"axis": -1}, domain="", num_outputs=3)
        heads = [[0, 0, -1, key_dim], [0, 0, -1, key_dim], [0, 0, -1, value_dim]]
        by_head = [
            call("Reshape", [part, integers(graph, shape)], domain="")
            for part, shape in zip(apart.outputs, heads, strict=True)
        ]
        attributes: Attributes = {
            "update_rule": "gated_delta",
            "gate_activation": "qwen",
            "beta_activation": "sigmoid",
            "qk_l2_norm": 1,
            "scale": key_dim**-0.5,
        }
        b_exact, a_exact = halves.outputs
        inputs = [*(each.outputs[0] for each in by_head), None, a_exact, b_exact, past, logarithm, dt_bias]
        rule = call("GatedDeltaNet", inputs, attributes, domain=MICROSOFT, num_outputs=2)
        flat = call("Reshape", [rule.outputs[0], integers(graph, [0, 0, num_heads * value_dim])], domain="")
        replace(node, [product, exact, halves, apart, *by_head, rule, flat], [flat.outputs[0], rule.outputs[1]])
    for node in own_nodes(graph, "GatedRMSNorm"):
        x, gate, weight = required(node.inputs)
        epsilon: Attributes = {"epsilon": attribute(node, "epsilon")}
        replace(node, [call("GatedRMSNorm", [x, weight, gate], epsilon, domain=MICROSOFT)])
