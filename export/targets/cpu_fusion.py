"""Fuses nodes that surround our operators on the CPU into operators of their own.

In a step of one token, a small node takes longer to start than to compute, and its threads wait for each other at both
ends. A fused operator starts once. cpu_functions.py has the functions that run the same nodes without native kernels.

A pattern is what the model's modules trace to. Nodes that do not match it stay as they are: right, and a little slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qwonnx.export.lowering.rewrite import Attributes, attribute, call, own_nodes, required, sizes
from qwonnx.export.targets.cpu_functions import CACHE_BITS


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear layer on codes."""

    node: ir.Node
    x: ir.Value
    weights: Sequence[ir.Value]  # codes, scales and perhaps zero points

    @property
    def y(self) -> ir.Value:
        return self.node.outputs[0]


@dataclass(frozen=True, slots=True)
class _Mixture:
    """The second half of a layer: the residual sum, its norm, routed experts and the shared one."""

    nodes: Sequence[ir.Node]
    residual: ir.Value
    mixed: ir.Value
    norm: ir.Node
    gates: ir.Value  # [num_experts + 1, H]: the router, and the shared expert's gate
    experts: ir.Node
    gate_up: _Linear  # of the shared expert
    down: _Linear
    y: ir.Value


@dataclass(frozen=True, slots=True)
class _DeltaNet:
    """The first half of a linear-attention layer, up to its output projection."""

    nodes: Sequence[ir.Node]
    norm: ir.Node
    gates: ir.Value  # [2 * num_value_heads, H]: of b, then of a
    qkv: _Linear
    z: _Linear
    conv: ir.Node
    rule: ir.Node
    gated: ir.Node
    outputs: Sequence[ir.Value]


@dataclass(frozen=True, slots=True)
class _AttentionInputs:
    """A full-attention layer up to its attention: norm, projections, norms of heads and rotations."""

    nodes: Sequence[ir.Node]
    norm: ir.Node
    q: _Linear  # of each head the query and the gate
    k: _Linear
    v: _Linear
    q_norm: ir.Node
    k_norm: ir.Node
    q_rotary: ir.Node
    k_rotary: ir.Node
    outputs: Sequence[ir.Value]


@dataclass(frozen=True, slots=True)
class _Angles:
    """From positions to the cosines and sines of rotary embedding."""

    nodes: Sequence[ir.Node]
    position_ids: ir.Value  # [3, B, T]
    frequencies: ir.Value  # [D]
    axes: ir.Value  # [3, 1, 1, D]
    factor: float
    outputs: Sequence[ir.Value]


def fuse(graph: ir.Graph) -> None:
    """Replace every group of nodes that a fused operator computes, in place."""
    for prefix in ("Quantized", "Affine"):
        for gated in own_nodes(graph, "GatedRMSNorm"):
            if delta_net := _match_delta_net(gated, f"{prefix}Linear"):
                _replace_delta_net(graph, delta_net, f"{prefix}DeltaNet")
        for attention in (node for op_type in CACHE_BITS for node in own_nodes(graph, op_type)):
            if inputs := _match_attention_inputs(attention, f"{prefix}Linear"):
                _replace_attention_inputs(graph, inputs, f"{prefix}AttentionInputs")
        for experts in own_nodes(graph, f"{prefix}Experts"):
            if found := _match_mixture(experts, f"{prefix}Linear"):
                _replace_mixture(graph, found, f"{prefix}Mixture")
        for linear in own_nodes(graph, f"{prefix}Linear"):
            _fuse_norm(graph, linear, f"{prefix}NormLinear")
    for cos in tuple(node for node in graph if node.op_type == "Cos"):
        if angles := _match_angles(cos):
            _replace_angles(graph, angles)


def _match_mixture(experts: ir.Node, linear: str) -> _Mixture | None:
    x, flat = required(experts.inputs)[:2]
    reshape = _maker(flat, "Reshape")
    split = reshape and _maker(reshape.inputs[0], "Split")
    product = split and _maker(split.inputs[0], "FusedMatMul")
    norm = _maker(x, "RMSNormalization")
    total = norm and _maker(norm.inputs[0], "Add")
    routed_and_shared = _only_user(experts.outputs[0], "Add")
    end = routed_and_shared and _only_user(routed_and_shared.outputs[0], "Add")
    if not (reshape and split and product and norm and total and routed_and_shared and end):
        return None
    shared = _maker(_other(routed_and_shared, experts.outputs[0]), "Mul")
    opening = _only_user(split.outputs[1], "Sigmoid") if len(split.outputs) == 2 else None
    if not (shared and opening) or required(product.inputs)[0] is not x:
        return None
    down = _linear(_other(shared, opening.outputs[0]), linear)
    product_of_gates = down and _maker(down.x, "Mul")
    silu = product_of_gates and _maker(product_of_gates.inputs[0], "Mul")
    halves = silu and _maker(silu.inputs[0], "Split")
    if not (down and product_of_gates and silu and halves):
        return None
    gate, up = halves.outputs[0], halves.outputs[-1]
    sigmoid = _maker(_other(silu, gate), "Sigmoid")
    gate_up = _linear(halves.inputs[0], linear)
    same = (
        sigmoid is not None
        and sigmoid.inputs[0] is gate
        and product_of_gates.inputs[1] is up
        and gate_up is not None
        and gate_up.x is x
        and len(halves.outputs) == 2
        and sizes_of_split(halves)[0] * 2 == sum(sizes_of_split(halves))
        and _other(end, routed_and_shared.outputs[0]) is total.outputs[0]
    )
    if not same or gate_up is None or sigmoid is None:
        return None
    inner = [norm, product, split, reshape, experts, opening, gate_up.node, halves, sigmoid, silu, product_of_gates]
    nodes = [total, *inner, down.node, shared, routed_and_shared, end]
    if not _is_closed(nodes, end.outputs):
        return None
    residual, mixed = required(total.inputs)
    gates = required(product.inputs)[1]
    return _Mixture(nodes, residual, mixed, norm, gates, experts, gate_up, down, end.outputs[0])


def _replace_mixture(graph: ir.Graph, found: _Mixture, op_type: str) -> None:
    routed = required(found.experts.inputs)[2:]
    num_experts = sizes(found.gates)[0] - 1
    rows, columns = (int(attribute(found.down.node, name)) for name in ("N", "K"))
    attributes: Attributes = {
        "top_k": attribute(found.experts, "top_k"),
        "epsilon": attribute(found.norm, "epsilon"),
        "accuracy_level": attribute(found.experts, "accuracy_level"),
        "gate_up_bits": attribute(found.experts, "gate_up_bits"),
        "down_bits": attribute(found.experts, "down_bits"),
        "block_size": attribute(found.experts, "block_size"),
        "shared_gate_up_bits": attribute(found.gate_up.node, "bits"),
        "shared_gate_up_block_size": attribute(found.gate_up.node, "block_size"),
        "shared_down_bits": attribute(found.down.node, "bits"),
        "shared_down_block_size": attribute(found.down.node, "block_size"),
        "hidden": rows,
        "shared_columns": columns,
        "shared_rows": 2 * columns,
        "shared_widths": [columns, columns],
        "gate_widths": [num_experts, 1],
        "logits_shape": [-1, num_experts],
    }
    norm = required(found.norm.inputs)[1]
    inputs = [found.residual, found.mixed, norm, found.gates, *routed, *found.gate_up.weights, *found.down.weights]
    _replace(graph, found.nodes, call(op_type, inputs, attributes), [found.y])


def _match_delta_net(gated: ir.Node, linear: str) -> _DeltaNet | None:
    read, z, _ = required(gated.inputs)
    rule = _maker(read, "GatedDeltaRule")
    conv = rule and _maker(rule.inputs[0], "CausalConv")
    qkv = conv and _linear(conv.inputs[0], linear)
    of_z = _linear(z, linear)
    split = rule and _maker(rule.inputs[1], "Split")
    product = split and _maker(split.inputs[0], "FusedMatMul")
    norm = of_z and _maker(of_z.x, "RMSNormalization")
    if not (rule and conv and qkv and of_z and split and product and norm):
        return None
    x = norm.outputs[0]
    b_and_a = list(rule.inputs[1:3])
    if qkv.x is not x or product.inputs[0] is not x or list(split.outputs) != b_and_a:
        return None
    nodes = [norm, qkv.node, conv, product, split, rule, of_z.node, gated]
    outputs = [gated.outputs[0], conv.outputs[1], rule.outputs[1]]
    if not _is_closed(nodes, outputs):
        return None
    return _DeltaNet(nodes, norm, required(product.inputs)[1], qkv, of_z, conv, rule, gated, outputs)


def _replace_delta_net(graph: ir.Graph, found: _DeltaNet, op_type: str) -> None:
    _, _, _, decay_scale, dt_bias, past_state = required(found.rule.inputs)
    _, conv_weight, past_conv = required(found.conv.inputs)
    h, norm = required(found.norm.inputs)
    out_norm = required(found.gated.inputs)[2]
    num_value_heads = sizes(past_state)[1]
    attributes: Attributes = {
        **{name: value.value for name, value in found.rule.attributes.items()},
        "norm_epsilon": attribute(found.norm, "epsilon"),
        "out_norm_epsilon": attribute(found.gated, "epsilon"),
        "accuracy_level": attribute(found.qkv.node, "accuracy_level"),
        "hidden": attribute(found.qkv.node, "K"),
        "gate_widths": [num_value_heads, num_value_heads],
        **_sizes_of_weights({"qkv": found.qkv, "z": found.z}),
    }
    inputs = [h, norm, found.gates, *found.qkv.weights, *found.z.weights]
    inputs += [conv_weight, decay_scale, dt_bias, out_norm, past_conv, past_state]
    _replace(graph, found.nodes, call(op_type, inputs, attributes, num_outputs=3), found.outputs)


def _match_attention_inputs(attention: ir.Node, linear: str) -> _AttentionInputs | None:
    query, key, value, gate = required(attention.inputs)[:4]
    q_rotary, k_rotary = _maker(query, "RotaryEmbedding"), _maker(key, "RotaryEmbedding")
    q_merge, k_merge = (rotary and _maker(rotary.inputs[0], "Reshape") for rotary in (q_rotary, k_rotary))
    q_norm, k_norm = (merge and _maker(merge.inputs[0], "RMSNormalization") for merge in (q_merge, k_merge))
    halves = q_norm and _maker(q_norm.inputs[0], "Split")
    q_heads, k_heads = (node and _maker(node.inputs[0], "Reshape") for node in (halves, k_norm))
    q, k = (heads and _linear(heads.inputs[0], linear) for heads in (q_heads, k_heads))
    v, gate_merge = _linear(value, linear), _maker(gate, "Reshape")
    norm = v and _maker(v.x, "RMSNormalization")
    if not (q_rotary and k_rotary and q_merge and k_merge and q_norm and k_norm and halves and q_heads and k_heads):
        return None
    if not (q and k and v and gate_merge and norm):
        return None
    dim = sizes(required(q_norm.inputs)[1])[0]
    same = (
        q.x is v.x
        and k.x is v.x
        and list(halves.outputs) == [q_norm.inputs[0], gate_merge.inputs[0]]
        and sizes_of_split(halves) == [dim, dim]
        and list(q_rotary.inputs[1:]) == list(k_rotary.inputs[1:])
        and len(q_rotary.inputs) == 3
        and all(attribute(rotary, "interleaved") == 0 for rotary in (q_rotary, k_rotary))
        and attribute(q_rotary, "rotary_embedding_dim") == attribute(k_rotary, "rotary_embedding_dim")
        and attribute(q.node, "N") == 2 * dim * attribute(q_rotary, "num_heads")
        and attribute(k.node, "N") == attribute(v.node, "N") == dim * attribute(k_rotary, "num_heads")
    )
    of_query = [q.node, q_heads, halves, q_norm, q_merge, q_rotary, gate_merge]
    nodes = [norm, *of_query, k.node, v.node, k_heads, k_norm, k_merge, k_rotary]
    outputs = [query, key, value, gate]
    if not same or not _is_closed(nodes, outputs):
        return None
    return _AttentionInputs(nodes, norm, q, k, v, q_norm, k_norm, q_rotary, k_rotary, outputs)


def _replace_attention_inputs(graph: ir.Graph, found: _AttentionInputs, op_type: str) -> None:
    h, norm = required(found.norm.inputs)
    _, cos, sin = required(found.q_rotary.inputs)
    num_heads, num_kv_heads = (int(attribute(node, "num_heads")) for node in (found.q_rotary, found.k_rotary))
    linears = {"q": found.q, "k": found.k, "v": found.v}
    attributes: Attributes = {
        "norm_epsilon": attribute(found.norm, "epsilon"),
        "q_norm_epsilon": attribute(found.q_norm, "epsilon"),
        "k_norm_epsilon": attribute(found.k_norm, "epsilon"),
        "accuracy_level": attribute(found.q.node, "accuracy_level"),
        "hidden": attribute(found.q.node, "K"),
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "rotary_dim": attribute(found.q_rotary, "rotary_embedding_dim"),
        "query_shape": [0, 0, num_heads, -1],
        "key_shape": [0, 0, num_kv_heads, -1],
        **_sizes_of_weights(linears),
    }
    weights = [weight for linear in linears.values() for weight in linear.weights]
    inputs = [h, cos, sin, norm, *weights, required(found.q_norm.inputs)[1], required(found.k_norm.inputs)[1]]
    _replace(graph, found.nodes, call(op_type, inputs, attributes, num_outputs=4), found.outputs)


def _fuse_norm(graph: ir.Graph, linear: ir.Node, op_type: str) -> None:
    """Put a norm that only this linear layer reads into it."""
    x, *weights = required(linear.inputs)
    norm = _maker(x, "RMSNormalization")
    if norm and _is_closed([norm, linear], linear.outputs) and attribute(norm, "axis") == -1:
        attributes: Attributes = {name: attribute(linear, name) for name in linear.attributes}
        inputs = [*required(norm.inputs), *weights]
        fused = call(op_type, inputs, {**attributes, "epsilon": attribute(norm, "epsilon")})
        _replace(graph, [norm, linear], fused, linear.outputs)


def _match_angles(cos: ir.Node) -> _Angles | None:
    total = _maker(cos.inputs[0], "ReduceSum")
    by_axis = total and _maker(total.inputs[0], "Mul")
    by_frequency = by_axis and _maker(by_axis.inputs[0], "Mul")
    unsqueeze = by_frequency and _maker(by_frequency.inputs[0], "Unsqueeze")
    cast = unsqueeze and _maker(unsqueeze.inputs[0], "Cast")
    if not (total and by_axis and by_frequency and unsqueeze and cast):
        return None
    sines = [use.node for use in total.outputs[0].uses() if use.node.op_type == "Sin"]
    sin = sines[0] if sines else None
    products = [node and _only_user(node.outputs[0], "Mul") for node in (cos, sin)]
    if not (sin and products[0] and products[1]):
        return None
    nodes = [cast, unsqueeze, by_frequency, by_axis, total, cos, products[0], sin, products[1]]
    outputs = [products[0].outputs[0], products[1].outputs[0]]
    factors = [_constant(node.inputs[1]) for node in (products[0], products[1])]
    (position_ids,), frequencies, axes = required(cast.inputs), *(node.inputs[1] for node in (by_frequency, by_axis))
    same = (
        frequencies is not None
        and axes is not None
        and len(sizes(frequencies)) == 1
        and sizes(axes) == (3, 1, 1, *sizes(frequencies))
        and position_ids.dtype == ir.DataType.INT64
        and len(sizes(position_ids)) == 3
        and sizes(position_ids)[0] == 3
        and _constant(unsqueeze.inputs[1]) == [3]
        and _constant(total.inputs[1]) == [0]
        and attribute(total, "keepdims") == 0
        and factors[0] == factors[1]
    )
    if not same or frequencies is None or axes is None or not isinstance(factors[0], float):
        return None
    return _Angles(nodes, position_ids, frequencies, axes, factors[0], outputs) if _is_closed(nodes, outputs) else None


def _replace_angles(graph: ir.Graph, found: _Angles) -> None:
    inputs = [found.position_ids, found.frequencies, found.axes]
    _replace(graph, found.nodes, call("RotaryAngles", inputs, {"factor": found.factor}, num_outputs=2), found.outputs)


def _constant(value: ir.Value | None) -> object:
    """The value of a small constant as Python's own type; None if it is not constant."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy().tolist()


def _sizes_of_weights(linears: Mapping[str, _Linear]) -> Attributes:
    """Rows, bits and block size of each linear layer, by the names of a fused operator's attributes."""
    return {
        f"{matrix}_{ours}": attribute(linear.node, name)
        for matrix, linear in linears.items()
        for ours, name in (("rows", "N"), ("bits", "bits"), ("block_size", "block_size"))
    }


def _replace(graph: ir.Graph, old: Sequence[ir.Node], new: ir.Node, outputs: Sequence[ir.Value]) -> None:
    """Put one node in the place of the last of several; its outputs replace the given ones."""
    for before, after in zip(outputs, new.outputs, strict=True):
        after.name, after.shape, after.type = before.name, before.shape, before.type
    ir.convenience.replace_nodes_and_values(graph, old[-1], list(old), [new], list(outputs), list(new.outputs))


def sizes_of_split(node: ir.Node) -> list[int]:
    """The widths of a Split's outputs, along its last axis."""
    return [sizes(output)[-1] for output in node.outputs]


def _linear(value: ir.Value | None, op_type: str) -> _Linear | None:
    node = _maker(value, op_type)
    if node is None:
        return None
    x, *weights = required(node.inputs)
    return _Linear(node, x, weights)


def _maker(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that yields a value, if it is of this type."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The input of a node with two, one of which is `value`, that is the other one."""
    first, second = node.inputs
    return second if first is value else first if second is value else None


def _is_closed(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> bool:
    """Whether no other node and no output of the graph needs a value of these nodes, but the given ones."""
    inner = [value for node in nodes for value in node.outputs if not any(value is output for output in outputs)]
    return not any(value.is_graph_output() or any(use.node not in nodes for use in value.uses()) for value in inner)
