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

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qwonnx.export.lowering.functions import used_operators
from qwonnx.export.lowering.rewrite import Attributes
from qwonnx.export.operators.ops import DOMAIN, VERSION

MICROSOFT = "com.microsoft"
# Operators of attention over a cache, and the bits of a cached value: 0 is a float. The heads of a model are built into
# their bodies, which cpu_attention.py has.
CACHE_BITS = {"GatedAttention": 0, "GatedAttentionInt8": 8, "GatedAttentionInt4": 4}
_OPSETS = {"": 23, MICROSOFT: 1}
_INT, _INTS, _FLOAT = ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT


@dataclass(frozen=True, slots=True)
class Reference:
    """The value of a function's attribute, for an attribute of a node in its body."""

    name: str


class FunctionBody:
    """Builds a function of the domain ai.qwonnx.

    Args:
        name: of the operator.
        inputs: their names, all required.
        attributes: their types by name, all required. Nodes may have more; ONNX Runtime passes those to kernels only.
    """

    def __init__(self, name: str, inputs: Sequence[str], attributes: Mapping[str, ir.AttributeType]) -> None:
        self._name = name
        self._attributes = attributes
        self._nodes: list[ir.Node] = []
        self._integers: dict[tuple[int, ...], ir.Value] = {}
        self.inputs = [ir.Value(name=each) for each in inputs]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | str | ir.Graph | Sequence[int] | Reference] | None = None,
        *,
        domain: str = MICROSOFT,
        num_outputs: int = 1,
    ) -> list[ir.Value]:
        """Add a node, and return its outputs."""
        given = dict(attributes or {})
        plain = {name: value for name, value in given.items() if not isinstance(value, Reference)}
        node = ir.node(op_type, inputs, plain, domain=domain, num_outputs=num_outputs)
        for name, value in given.items():
            if isinstance(value, Reference):
                node.attributes[name] = ir.RefAttr(name, value.name, self._attributes[value.name])
        for index, output in enumerate(node.outputs):
            output.name = f"{op_type}.{len(self._nodes)}.{index}"
        self._nodes.append(node)
        return list(node.outputs)

    def integers(self, *values: int) -> ir.Value:
        """An int64 vector, one node for each that is used."""
        if values not in self._integers:
            (self._integers[values],) = self.add("Constant", [], {"value_ints": values}, domain="")
        return self._integers[values]

    def function(self, outputs: Sequence[ir.Value]) -> ir.Function:
        """The function that yields these values."""
        graph = ir.Graph(self.inputs, outputs, nodes=self._nodes, opset_imports=dict(_OPSETS), name=self._name)
        if used_operators(graph):
            graph.opset_imports[DOMAIN] = VERSION
        declared = [ir.Attr(name, kind, None) for name, kind in self._attributes.items()]
        return ir.Function(DOMAIN, self._name, graph=graph, attributes=declared)


def add_kernel_functions(model: ir.Model) -> None:
    """Add the function of every operator in the graph that has one here."""
    for name in used_operators(model.graph):
        if name in _BODIES:
            function = _BODIES[name]()
            model.functions[function.identifier()] = function


def kernel_operators() -> Collection[str]:
    """The operators that have a function here, or in cpu_attention.py."""
    return {*_BODIES, *CACHE_BITS}


def _linear(name: str, *weights: str) -> ir.Function:
    """x [..., K], codes uint8 [N, K / block_size, block_size * bits / 8], scales [N, K / block_size] -> [..., N]."""
    attributes = ("N", "K", "bits", "block_size", "accuracy_level")
    body = FunctionBody(name, ["x", *weights], dict.fromkeys(attributes, _INT))
    return body.function(body.add("MatMulNBits", body.inputs, {each: Reference(each) for each in attributes}))


def _experts(name: str, *weights: str) -> ir.Function:
    """x [..., H], the router's logits [tokens, experts], and weights as QMoE takes them -> [..., H]."""
    attributes = ("top_k", "gate_up_bits", "down_bits", "block_size", "accuracy_level")
    prefixed = [f"{matrix}_{part}" for matrix in ("gate_up", "down") for part in weights]
    body = FunctionBody(name, ["x", "logits", *prefixed], dict.fromkeys(attributes, _INT))
    x, logits, *matrices = body.inputs
    gate_up, gate_up_scales, *gate_up_zero_points = matrices[: len(weights)]
    down, down_scales, *down_zero_points = matrices[len(weights) :]
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
    return body.function(body.add("QMoE", inputs, {**SWIGLU, **references}))


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


# Of MoE and QMoE: SiLU of even rows times odd rows, and the weights of the chosen experts add up to 1.
SWIGLU: dict[str, int | float | str] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
    "normalize_routing_weights": 1,
}

_BODIES: dict[str, Callable[[], ir.Function]] = {
    "QuantizedLinear": lambda: _linear("QuantizedLinear", "codes", "scales"),
    "AffineLinear": lambda: _linear("AffineLinear", "codes", "scales", "zero_points"),
    "QuantizedExperts": lambda: _experts("QuantizedExperts", "codes", "scales"),
    "AffineExperts": lambda: _experts("AffineExperts", "codes", "scales", "zero_points"),
    "CausalConv": _causal_conv,
    "GatedDeltaRule": _delta_rule,
    "GatedRMSNorm": _gated_norm,
}
