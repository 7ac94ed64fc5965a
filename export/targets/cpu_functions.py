"""The CPU target's functions: operators of ours whose bodies call ONNX Runtime's own kernels.

A graph names the operator. Where the native library is registered, its kernel runs, and ONNX Runtime ignores the body.
Where it is not, ONNX Runtime inlines the body, so the session is that of a graph of ONNX Runtime's kernels: the same
nodes, the same bits. A body that computes with standard operators, as those of export/operators do, would be folded
into float32 weights instead.

To add an operator: write its body below, list it in _BODIES, and let a lowering put its nodes into the graph. A body
takes sizes as attributes, by reference, because one body serves all nodes of a model. The manifest lists the operators
that a graph uses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import onnx_ir as ir

from qwonnx.export.lowering.functions import used_operators
from qwonnx.export.lowering.rewrite import Attributes
from qwonnx.export.operators.ops import DOMAIN
from qwonnx.export.targets.contributed import SWIGLU
from qwonnx.export.targets.function_body import FunctionBody, Reference

# Operators of attention over a cache, and the bits of a cached value: 0 is a float. The heads of a model are built into
# their bodies, which cpu_attention.py has.
CACHE_BITS = {"GatedAttention": 0, "GatedAttentionInt8": 8, "GatedAttentionInt4": 4}
_INT, _INTS, _FLOAT = ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT


def add_kernel_functions(model: ir.Model) -> None:
    """Add the function of every operator in the graph that has one here, and of those in these functions."""
    names = used_operators(model.graph)
    for name in names:
        if name in _BODIES:
            function = _BODIES[name]()
            model.functions[function.identifier()] = function
            names += [inner for inner in used_operators(function) if inner not in names]


def kernel_operators() -> Collection[str]:
    """The operators that have a function here, or in cpu_attention.py, and those whose own body serves."""
    return {*_BODIES, *CACHE_BITS, "AddAdapters"}


def _linear(name: str, *weights: str) -> ir.Function:
    """x [..., K], codes uint8 [N, K / block_size, block_size * bits / 8], scales [N, K / block_size] -> [..., N]."""
    attributes = ("N", "K", "bits", "block_size", "accuracy_level")
    body = FunctionBody(name, ["x", *weights], dict.fromkeys(attributes, _INT))
    return body.function(body.add("MatMulNBits", body.inputs, {each: Reference(each) for each in attributes}))


def _norm_linear(name: str, *weights: str) -> ir.Function:
    """x [..., K], its norm [K], and weights as of _linear() -> [..., N]."""
    numbers = ("N", "K", "bits", "block_size", "accuracy_level")
    body = FunctionBody(name, ["x", "norm", *weights], {"epsilon": _FLOAT, **dict.fromkeys(numbers, _INT)})
    x, norm, *matrix = body.inputs
    (normed,) = body.add("RMSNormalization", [x, norm], {"axis": -1, "epsilon": Reference("epsilon")}, domain="")
    return body.function(body.add("MatMulNBits", [normed, *matrix], {each: Reference(each) for each in numbers}))


def _rotary_angles() -> ir.Function:
    """position_ids [3, B, T], frequencies [D], axes [3, 1, 1, D] -> cos and sin [B, T, D]."""
    body = FunctionBody("RotaryAngles", ["position_ids", "frequencies", "axes"], {"factor": _FLOAT})
    position_ids, frequencies, axes = body.inputs

    def add(op_type: str, *inputs: ir.Value, **attributes: int | Reference) -> ir.Value:
        return body.add(op_type, inputs, attributes, domain="")[0]

    positions = add("Unsqueeze", add("Cast", position_ids, to=ir.DataType.FLOAT.value), body.integers(3))
    by_axis = add("Mul", add("Mul", positions, frequencies), axes)
    angles = add("ReduceSum", by_axis, body.integers(0), keepdims=0)
    factor = add("Constant", value_float=Reference("factor"))
    return body.function([add("Mul", add("Cos", angles), factor), add("Mul", add("Sin", angles), factor)])


def _experts(name: str, *weights: str) -> ir.Function:
    """x [..., H], the router's logits [tokens, experts], and weights as QMoE takes them -> [..., H]."""
    attributes = ("top_k", "gate_up_bits", "down_bits", "block_size", "accuracy_level")
    prefixed = [f"{matrix}_{part}" for matrix in ("gate_up", "down") for part in weights]
    body = FunctionBody(name, ["x", "logits", *prefixed], dict.fromkeys(attributes, _INT))
    x, logits, *matrices = body.inputs
    return body.function(_add_experts(body, x, logits, matrices))


def _add_experts(body: FunctionBody, x: ir.Value, logits: ir.Value, matrices: Sequence[ir.Value]) -> list[ir.Value]:
    """QMoE; matrices are codes, scales and perhaps zero points of gate and up, then of down."""
    gate_up, gate_up_scales, *gate_up_zero_points = matrices[: len(matrices) // 2]
    down, down_scales, *down_zero_points = matrices[len(matrices) // 2 :]
    inputs = [x, logits, gate_up, gate_up_scales, None, down, down_scales]
    if gate_up_zero_points:
        # After the biases and the third matrix, which fused gate and up rows do not have.
        inputs += [None, None, None, None, *gate_up_zero_points, *down_zero_points]
    references = {
        "k": Reference("top_k"),
        "expert_weight_bits": Reference("gate_up_bits"),
        "fc2_expert_weight_bits": Reference("down_bits"),
        "block_size": Reference("block_size"),
        "accuracy_level": Reference("accuracy_level"),
    }
    return body.add("QMoE", inputs, {**SWIGLU, **references})


# Of QuantizedMixture and AffineMixture, in the order of their inputs; cpu_fusion.py computes them.
_MIXTURE = {
    "top_k": _INT,
    "epsilon": _FLOAT,
    "accuracy_level": _INT,
    "gate_up_bits": _INT,
    "down_bits": _INT,
    "block_size": _INT,  # of the routed experts
    "shared_gate_up_bits": _INT,
    "shared_gate_up_block_size": _INT,
    "shared_down_bits": _INT,
    "shared_down_block_size": _INT,
    "hidden": _INT,
    "shared_columns": _INT,  # of down
    "shared_rows": _INT,  # of gate and up together
    "shared_widths": _INTS,  # of gate and of up
    "gate_widths": _INTS,  # num_experts, and 1
    "logits_shape": _INTS,
}


def _mixture(name: str, *weights: str) -> ir.Function:
    """residual and mixed [B, T, H] -> residual + mixed + experts, of which one is shared, of their norm.

    norm is [H]; gates [num_experts + 1, H] are the router and the shared expert's gate; then come the weights of the
    routed experts as QMoE takes them and those of the shared one as MatMulNBits does, gate rows before up rows.
    """
    matrices = ("gate_up", "down", "shared_gate_up", "shared_down")
    names = [f"{matrix}_{part}" for matrix in matrices for part in weights]
    body = FunctionBody(name, ["residual", "mixed", "norm", "gates", *names], _MIXTURE)
    residual, mixed, norm, gates, *all_weights = body.inputs
    routed, shared = all_weights[: len(names) // 2], all_weights[len(names) // 2 :]
    (total,) = body.add("Add", [residual, mixed], domain="")
    (x,) = body.add("RMSNormalization", [total, norm], {"axis": -1, "epsilon": Reference("epsilon")}, domain="")
    scores = _add_gates(body, x, gates)
    (gate_widths,) = body.add("Constant", [], {"value_ints": Reference("gate_widths")}, domain="")
    logits, opening = body.add("Split", [scores, gate_widths], {"axis": -1}, domain="", num_outputs=2)
    (shape,) = body.add("Constant", [], {"value_ints": Reference("logits_shape")}, domain="")
    (flat,) = body.add("Reshape", [logits, shape], domain="")
    (experts,) = _add_experts(body, x, flat, routed)
    (opened,) = body.add("Sigmoid", [opening], domain="")
    gate_up = _add_product(body, "shared_gate_up", x, shared[: len(weights)], "shared_rows", "hidden")
    (widths,) = body.add("Constant", [], {"value_ints": Reference("shared_widths")}, domain="")
    gate, up = body.add("Split", [gate_up, widths], {"axis": -1}, domain="", num_outputs=2)
    (sigmoid,) = body.add("Sigmoid", [gate], domain="")
    (silu,) = body.add("Mul", [gate, sigmoid], domain="")
    (product,) = body.add("Mul", [silu, up], domain="")
    down = _add_product(body, "shared_down", product, shared[len(weights) :], "hidden", "shared_columns")
    (share,) = body.add("Mul", [opened, down], domain="")
    (both,) = body.add("Add", [experts, share], domain="")
    return body.function(body.add("Add", [total, both], domain=""))


def _add_gates(body: FunctionBody, x: ir.Value, gates: ir.Value) -> ir.Value:
    """The product with a matrix of float32 or bfloat16; sessions fold the Cast, which leaves float32 as it is."""
    (floats,) = body.add("Cast", [gates], {"to": ir.DataType.FLOAT.value}, domain="")
    return body.add("FusedMatMul", [x, floats], {"transB": 1})[0]


def _add_product(
    body: FunctionBody, matrix: str, x: ir.Value, weights: Sequence[ir.Value], rows: str, columns: str
) -> ir.Value:
    """A linear layer; rows and columns are the names of attributes, as are those that begin with the matrix."""
    attributes = {
        "N": Reference(rows),
        "K": Reference(columns),
        "bits": Reference(f"{matrix}_bits"),
        "block_size": Reference(f"{matrix}_block_size"),
        "accuracy_level": Reference("accuracy_level"),
    }
    return body.add("MatMulNBits", [x, *weights], attributes)[0]


def _causal_conv() -> ir.Function:
    """x [B, T, C], weight [C, 1, K], past_state [B, C, K - 1] -> y [B, T, C], present_state.

    Channels first with a separate SiLU is three times as fast on chunks of a prompt as channels last with the kernel's
    own SiLU, which is scalar code. QuickGelu with alpha 1 is a vectorised SiLU.
    """
    body = FunctionBody("CausalConv", ["x", "weight", "past_state"], {})
    x, weight, past_state = body.inputs
    (by_channel,) = body.add("Transpose", [x], {"perm": [0, 2, 1]}, domain="")
    convolved, present_state = body.add("CausalConvWithState", [by_channel, weight, None, past_state], num_outputs=2)
    (by_token,) = body.add("Transpose", [convolved], {"perm": [0, 2, 1]}, domain="")
    return body.function([*body.add("QuickGelu", [by_token], {"alpha": 1.0}), present_state])


def _gated_norm() -> ir.Function:
    """x and gate [B, T, num_heads * D], weight [D] -> as x.

    Three vectorised kernels: com.microsoft.GatedRMSNorm is scalar code and takes 16 times as long on 512 tokens.
    """
    body = FunctionBody("GatedRMSNorm", ["x", "gate", "weight"], {"num_heads": _INT, "epsilon": _FLOAT})
    x, gate, weight = body.inputs
    attributes = {"num_branches": Reference("num_heads"), "epsilon": Reference("epsilon")}
    (normed,) = body.add("BranchwiseRMSNorm", [x, weight], attributes)  # of every head, without Reshape nodes
    (silu,) = body.add("QuickGelu", [gate], {"alpha": 1.0})
    return body.function(body.add("Mul", [normed, silu], domain=""))


# Of GatedDeltaRule; delta_rule_attributes() computes them.
_DELTA_RULE = {
    "num_key_heads": _INT,
    "num_value_heads": _INT,
    "widths": _INTS,  # of q and k together, and of v
    "num_normed_heads": _INT,  # of q and k together
    "key_dim": _INTS,  # a shape
    "unit_scale": _FLOAT,
    "unit_epsilon": _FLOAT,
}


def delta_rule_attributes(key_heads: int, value_heads: int, key_dim: int, value_dim: int, epsilon: float) -> Attributes:
    """Of a GatedDeltaRule node: the operator's own, and what its function needs.

    RMS norm with weight D**-0.5 and epsilon / D is the L2 norm with epsilon inside the root.
    """
    return {
        "num_key_heads": key_heads,
        "epsilon": epsilon,
        "num_value_heads": value_heads,
        "widths": [2 * key_heads * key_dim, value_heads * value_dim],
        "num_normed_heads": 2 * key_heads,
        "key_dim": [key_dim],
        "unit_scale": key_dim**-0.5,
        "unit_epsilon": epsilon / key_dim,
    }


def _delta_rule() -> ir.Function:
    """LinearAttention takes normalised q and k, and the decay in log space."""
    names = ["qkv", "b", "a", "decay_scale", "dt_bias", "past_state"]
    body = FunctionBody("GatedDeltaRule", names, _DELTA_RULE)
    qkv, b, a, decay_scale, dt_bias, past_state = body.inputs
    (widths,) = body.add("Constant", [], {"value_ints": Reference("widths")}, domain="")
    (shape,) = body.add("Constant", [], {"value_ints": Reference("key_dim")}, domain="")
    (scale,) = body.add("Constant", [], {"value_float": Reference("unit_scale")}, domain="")
    (scales,) = body.add("Expand", [scale, shape], domain="")  # a constant, once the session is created
    qk, v = body.add("Split", [qkv, widths], {"axis": -1}, domain="", num_outputs=2)
    norm = {"num_branches": Reference("num_normed_heads"), "epsilon": Reference("unit_epsilon")}
    (unit,) = body.add("BranchwiseRMSNorm", [qk, scales], norm)  # q and k share one
    q, k = body.add("Split", [unit], {"axis": -1, "num_outputs": 2}, domain="", num_outputs=2)
    decay, beta = body.add("LinearAttentionGate", [a, dt_bias, decay_scale, b], num_outputs=2)
    attributes: dict[str, str | Reference] = {
        "q_num_heads": Reference("num_key_heads"),
        "kv_num_heads": Reference("num_value_heads"),
        "update_rule": "gated_delta",
        "scale": Reference("unit_scale"),
    }
    return body.function(body.add("LinearAttention", [q, k, v, past_state, decay, beta], attributes, num_outputs=2))


# Of QuantizedDeltaNet and AffineDeltaNet; cpu_fusion.py computes them.
_DELTA_NET = {
    **_DELTA_RULE,
    "epsilon": _FLOAT,
    "norm_epsilon": _FLOAT,
    "out_norm_epsilon": _FLOAT,
    "accuracy_level": _INT,
    "hidden": _INT,
    "gate_widths": _INTS,  # of b and of a
    **{f"{matrix}_{name}": _INT for matrix in ("qkv", "z") for name in ("rows", "bits", "block_size")},
}


def _delta_net(name: str, *weights: str) -> ir.Function:
    """h [B, T, H] and both past states -> gated [B, T, value width], and both present states.

    norm is [H]; gates [2 * num_value_heads, H] are the projections of b and of a; then come the weights of qkv and z as
    MatMulNBits takes them, and the inputs of CausalConv, GatedDeltaRule and GatedRMSNorm.
    """
    matrices = [f"{matrix}_{part}" for matrix in ("qkv", "z") for part in weights]
    states = ["conv_weight", "decay_scale", "dt_bias", "out_norm", "past_conv", "past_state"]
    body = FunctionBody(name, ["h", "norm", "gates", *matrices, *states], _DELTA_NET)
    h, norm, gates, *rest = body.inputs
    conv_weight, decay_scale, dt_bias, out_norm, past_conv, past_state = rest[len(matrices) :]
    (x,) = body.add("RMSNormalization", [h, norm], {"axis": -1, "epsilon": Reference("norm_epsilon")}, domain="")
    qkv, z = (
        _add_product(
            body, matrix, x, rest[index * len(weights) : (index + 1) * len(weights)], f"{matrix}_rows", "hidden"
        )
        for index, matrix in enumerate(("qkv", "z"))
    )
    scores = _add_gates(body, x, gates)
    (widths,) = body.add("Constant", [], {"value_ints": Reference("gate_widths")}, domain="")
    b, a = body.add("Split", [scores, widths], {"axis": -1}, domain="", num_outputs=2)
    convolved, present_conv = body.add("CausalConv", [qkv, conv_weight, past_conv], domain=DOMAIN, num_outputs=2)
    attributes = {name: Reference(name) for name in (*_DELTA_RULE, "epsilon")}
    inputs = [convolved, b, a, decay_scale, dt_bias, past_state]
    read, present_state = body.add("GatedDeltaRule", inputs, attributes, domain=DOMAIN, num_outputs=2)
    heads = {"num_heads": Reference("num_value_heads"), "epsilon": Reference("out_norm_epsilon")}
    (gated,) = body.add("GatedRMSNorm", [read, z, out_norm], heads, domain=DOMAIN)
    return body.function([gated, present_conv, present_state])


# Of QuantizedAttentionInputs and AffineAttentionInputs; cpu_fusion.py computes them.
_ATTENTION_INPUTS = {
    "norm_epsilon": _FLOAT,
    "q_norm_epsilon": _FLOAT,
    "k_norm_epsilon": _FLOAT,
    "accuracy_level": _INT,
    "hidden": _INT,
    "num_heads": _INT,
    "num_kv_heads": _INT,
    "rotary_dim": _INT,
    "query_shape": _INTS,  # [0, 0, num_heads, -1]
    "key_shape": _INTS,
    **{f"{matrix}_{name}": _INT for matrix in "qkv" for name in ("rows", "bits", "block_size")},
}


def _attention_inputs(name: str, *weights: str) -> ir.Function:
    """h [B, T, H], cos and sin [B, T, rotary_dim / 2] -> query, key, value and gate as GatedAttention takes them.

    norm is [H], q_norm and k_norm [D]; q has 2 * num_heads * D rows, of each head the query and then the gate; k and v
    have num_kv_heads * D.
    """
    matrices = [f"{matrix}_{part}" for matrix in "qkv" for part in weights]
    names = ["h", "cos", "sin", "norm", *matrices, "q_norm", "k_norm"]
    body = FunctionBody(name, names, _ATTENTION_INPUTS)
    h, cos, sin, norm, *all_weights, q_norm, k_norm = body.inputs
    (x,) = body.add("RMSNormalization", [h, norm], {"axis": -1, "epsilon": Reference("norm_epsilon")}, domain="")
    q, k, v = (
        _add_product(
            body, matrix, x, all_weights[index * len(weights) : (index + 1) * len(weights)], f"{matrix}_rows", "hidden"
        )
        for index, matrix in enumerate("qkv")
    )

    def heads(projected: ir.Value, kind: str) -> ir.Value:
        (shape,) = body.add("Constant", [], {"value_ints": Reference(f"{kind}_shape")}, domain="")
        return body.add("Reshape", [projected, shape], domain="")[0]

    def merged(by_head: ir.Value) -> ir.Value:
        return body.add("Reshape", [by_head, body.integers(0, 0, -1)], domain="")[0]

    def rotated(by_head: ir.Value, weight: ir.Value, epsilon: str, num_heads: str) -> ir.Value:
        attributes: dict[str, int | Reference] = {"axis": -1, "epsilon": Reference(epsilon)}
        (normed,) = body.add("RMSNormalization", [by_head, weight], attributes, domain="")
        rotary: dict[str, int | Reference] = {"num_heads": Reference(num_heads), "interleaved": 0}
        rotary["rotary_embedding_dim"] = Reference("rotary_dim")
        return body.add("RotaryEmbedding", [merged(normed), cos, sin], rotary, domain="")[0]

    query, gate = body.add("Split", [heads(q, "query")], {"axis": -1, "num_outputs": 2}, domain="", num_outputs=2)
    outputs = [
        rotated(query, q_norm, "q_norm_epsilon", "num_heads"),
        rotated(heads(k, "key"), k_norm, "k_norm_epsilon", "num_kv_heads"),
    ]
    return body.function([*outputs, v, merged(gate)])


_BODIES: dict[str, Callable[[], ir.Function]] = {
    "QuantizedLinear": lambda: _linear("QuantizedLinear", "codes", "scales"),
    "AffineLinear": lambda: _linear("AffineLinear", "codes", "scales", "zero_points"),
    "QuantizedExperts": lambda: _experts("QuantizedExperts", "codes", "scales"),
    "AffineExperts": lambda: _experts("AffineExperts", "codes", "scales", "zero_points"),
    "QuantizedMixture": lambda: _mixture("QuantizedMixture", "codes", "scales"),
    "AffineMixture": lambda: _mixture("AffineMixture", "codes", "scales", "zero_points"),
    "QuantizedDeltaNet": lambda: _delta_net("QuantizedDeltaNet", "codes", "scales"),
    "AffineDeltaNet": lambda: _delta_net("AffineDeltaNet", "codes", "scales", "zero_points"),
    "QuantizedAttentionInputs": lambda: _attention_inputs("QuantizedAttentionInputs", "codes", "scales"),
    "AffineAttentionInputs": lambda: _attention_inputs("AffineAttentionInputs", "codes", "scales", "zero_points"),
    "QuantizedNormLinear": lambda: _norm_linear("QuantizedNormLinear", "codes", "scales"),
    "AffineNormLinear": lambda: _norm_linear("AffineNormLinear", "codes", "scales", "zero_points"),
    "RotaryAngles": _rotary_angles,
    "CausalConv": _causal_conv,
    "GatedDeltaRule": _delta_rule,
    "GatedRMSNorm": _gated_norm,
}
