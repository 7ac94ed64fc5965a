"""The lowering for NVIDIA's plugin TensorRT for RTX, in half precision: the operators that its parser imports.

    Linear                  MatMulNBits of 4 bits in blocks of 32, 64 or 128; MatMul of floats
    attention               norms outside, GroupQueryAttention with the rotary embedding inside
    DeltaNet                CausalConvWithState with channels first, LinearAttention with unit q and k
    experts                 QMoE of 4 bits in blocks of 128
    embedding               Gather, of floats whatever the recipe says
    everything else         standard operators

rtx_importers.py checks the operators. What an importer wants of shapes and attributes is checked here, from the texts
of the plugin's parser (0.5).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from qwonnx.export.checkpoint.weight_names import GATE_UP
from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.constants import constant, integers
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.lowering.merge import merge_projections
from qwonnx.export.lowering.quantized_ops import quantize_weights
from qwonnx.export.lowering.rewrite import Attributes, attribute, call, own_nodes, replace, required, sizes
from qwonnx.export.targets.contributed import MICROSOFT, SWIGLU, block_size, replace_experts
from qwonnx.export.targets.cuda_lowering import fill_experts, give_float_logits, give_stored_types, step_inputs
from qwonnx.export.targets.cuda_mixers import StepInputs, producer
from qwonnx.export.targets.rtx_importers import without_importer
from qwonnx.export.targets.target import LoweringFacts

_LINEAR_BLOCKS = (32, 64, 128)
# The importer takes 8 bits of a linear layer too, and its plugin then ends the process.
_BITS, _EXPERT_BLOCK = 4, 128
# The plugin wants a limit of the gated units; half precision has no larger number.
_NO_LIMIT = 65504.0
_FULL, _HALF = ir.DataType.FLOAT.value, ir.DataType.FLOAT16.value


def lower_to_rtx(model: ir.Model, weights: GraphWeights, facts: LoweringFacts) -> None:
    """Lower a traced model in place.

    Args:
        model: as traced.
        weights: the table of its weights, in half precision.
        facts: of the model.

    Raises:
        RecipeError: the plugin does not take the model, or weights that are stored so.
    """
    graph = model.graph
    step = step_inputs(graph, facts.config, ir.DataType.FLOAT16)
    _lower_attention(graph, step)
    _lower_delta_net(graph, weights)
    _lower_embedding(graph, weights)
    fill_experts(graph, weights, _EXPERT_BLOCK)
    merge_projections(graph, weights)
    quantize_weights(graph, weights)
    _lower_experts(graph)
    merge_projections(graph, weights)
    _lower_linear(graph, weights)
    give_float_logits(graph)
    give_stored_types(graph, weights, facts.states)
    model.opset_imports[MICROSOFT] = 1
    passes.RemoveUnusedNodesPass()(model)
    if missing := without_importer(model):
        raise RecipeError(f"{missing[0]}: this model cannot be exported for RTX with this recipe")


def _lower_attention(graph: ir.Graph, step: StepInputs) -> None:
    """The kernel rotates, appends and attends."""
    for node in own_nodes(graph, "GatedAttention"):
        query, key, value, gate, past_key, past_value, _lengths = required(node.inputs)
        normed = [required(producer(each, "RotaryEmbedding").inputs)[0] for each in (query, key)]
        inputs = [*normed, value, past_key, past_value, step.last_positions, step.total_sequence_length]
        inputs += [step.cos, step.sin, step.positions]
        attributes: Attributes = {
            "num_heads": attribute(node, "num_heads"),
            "kv_num_heads": sizes(past_key)[1],
            "do_rotary": 1,
            "scale": sizes(past_key)[-1] ** -0.5,  # the kernels' default, which the importer does not know
        }
        attended = call("GroupQueryAttention", inputs, attributes, domain=MICROSOFT, num_outputs=3)
        opened = call("Sigmoid", [gate], domain="")
        gated = call("Mul", [attended.outputs[0], opened.outputs[0]], domain="")
        replace(node, [attended, opened, gated], [gated.outputs[0], *attended.outputs[1:]])


def _lower_delta_net(graph: ir.Graph, weights: GraphWeights) -> None:
    for node in own_nodes(graph, "CausalConv"):
        x, taps, past = required(node.inputs)
        by_channel = call("Transpose", [x], {"perm": [0, 2, 1]}, domain="")
        no_bias = _zeros(graph, sizes(taps)[:1])  # the importer wants one
        inputs = [by_channel.outputs[0], taps, no_bias, past]
        convolution: Attributes = {"activation": "silu", "ndim": 1}
        convolved = call("CausalConvWithState", inputs, convolution, domain=MICROSOFT, num_outputs=2)
        by_token = call("Transpose", [convolved.outputs[0]], {"perm": [0, 2, 1]}, domain="")
        replace(node, [by_channel, convolved, by_token], [by_token.outputs[0], convolved.outputs[1]])
    for node in own_nodes(graph, "GatedDeltaRule"):
        _lower_delta_rule(graph, weights, node)
    for node in own_nodes(graph, "GatedRMSNorm"):
        x, gate, weight = required(node.inputs)
        width = sizes(x)[-1]
        heads = call("Reshape", [x, integers(graph, [0, 0, -1, sizes(weight)[0]])], domain="")
        norm: Attributes = {"axis": -1, "epsilon": attribute(node, "epsilon")}
        normed = call("RMSNormalization", [heads.outputs[0], weight], norm, domain="")
        flat = call("Reshape", [normed.outputs[0], integers(graph, [0, 0, width])], domain="")
        opened = call("Sigmoid", [gate], domain="")
        silu = call("Mul", [gate, opened.outputs[0]], domain="")
        replace(node, [heads, normed, flat, opened, silu, call("Mul", [flat.outputs[0], silu.outputs[0]], domain="")])


def _lower_delta_rule(graph: ir.Graph, weights: GraphWeights, node: ir.Node) -> None:
    """LinearAttention takes unit q and k, the decay in log space and beta; the decay is computed in float32.

    RMS norm with weight D**-0.5 and epsilon / D is the L2 norm with epsilon inside the root.
    """
    qkv, b, a, decay_scale, dt_bias, past = required(node.inputs)
    _, value_heads, key_dim, value_dim = sizes(past)
    key_heads = int(attribute(node, "num_key_heads"))
    for each in (decay_scale, dt_bias):
        weights.keep_float32(each)
    widths = integers(graph, [2 * key_heads * key_dim, value_heads * value_dim])
    apart = call("Split", [qkv, widths], {"axis": -1}, domain="", num_outputs=2)
    heads = call("Reshape", [apart.outputs[0], integers(graph, [0, 0, 2 * key_heads, key_dim])], domain="")
    scale = constant(graph, f"unit_scale.{key_dim}", np.full(key_dim, key_dim**-0.5, np.float16))
    norm: Attributes = {"axis": -1, "epsilon": float(attribute(node, "epsilon")) / key_dim}
    unit = call("RMSNormalization", [heads.outputs[0], scale], norm, domain="")
    flat = call("Reshape", [unit.outputs[0], integers(graph, [0, 0, 2 * key_heads * key_dim])], domain="")
    q_and_k = call("Split", [flat.outputs[0]], {"axis": -1, "num_outputs": 2}, domain="", num_outputs=2)
    exact = call("Cast", [a], {"to": _FULL}, domain="")
    shifted = call("Add", [exact.outputs[0], dt_bias], domain="")
    positive = call("Softplus", [shifted.outputs[0]], domain="")
    product = call("Mul", [positive.outputs[0], decay_scale], domain="")
    decay = call("Cast", [product.outputs[0]], {"to": _HALF}, domain="")
    beta = call("Sigmoid", [b], domain="")
    attributes: Attributes = {
        "q_num_heads": key_heads,
        "kv_num_heads": value_heads,
        "update_rule": "gated_delta",
        "scale": key_dim**-0.5,
    }
    inputs = [*q_and_k.outputs, apart.outputs[1], past, decay.outputs[0], beta.outputs[0]]
    rule = call("LinearAttention", inputs, attributes, domain=MICROSOFT, num_outputs=2)
    gates = [exact, shifted, positive, product, decay, beta]
    replace(node, [apart, heads, unit, flat, q_and_k, *gates, rule], list(rule.outputs))


def _lower_experts(graph: ir.Graph) -> None:
    """QMoE of codes.

    Raises:
        RecipeError: the experts are stored otherwise than the plugin takes them.
    """
    wanted = f"the plugin for RTX wants {_BITS} bits in blocks of {_EXPERT_BLOCK} without zero points"
    for prefix in ("", "Affine"):
        for node in own_nodes(graph, f"{prefix}RoutedExperts"):
            name = str(required(node.inputs)[2].name)
            found = "zero points" if prefix else "floats"
            raise RecipeError(f"{name} has {found}: {wanted}")
    for node in own_nodes(graph, "QuantizedRoutedExperts"):
        _, _, codes, scales, down, down_scales = required(node.inputs)
        name = str(codes.name).removesuffix(f".{GATE_UP}.codes")
        bits = [int(attribute(node, f"{matrix}_bits")) for matrix in ("gate_up", "down")]
        blocks = [block_size(*pair) for pair in ((codes, scales, bits[0]), (down, down_scales, bits[1]))]
        if {*bits} != {_BITS} or {*blocks} != {_EXPERT_BLOCK}:
            found = " and ".join(f"{b} bits in blocks of {size}" for b, size in zip(bits, blocks, strict=True))
            raise RecipeError(f"{name} has {found}: {wanted}")
        kernel: Attributes = SWIGLU | {
            "k": attribute(node, "top_k"),
            "expert_weight_bits": _BITS,
            "block_size": _EXPERT_BLOCK,
            "swiglu_limit": _NO_LIMIT,
            "use_sparse_mixer": 0,
        }
        no_bias = [_zeros(graph, sizes(each)[:2]) for each in (codes, down)]  # the importer wants one
        inputs = [codes, scales, no_bias[0], down, down_scales, no_bias[1]]
        replace_experts(graph, node, "QMoE", inputs, kernel, MICROSOFT)


def _lower_embedding(graph: ir.Graph, weights: GraphWeights) -> None:
    """Rows are looked up, of floats whatever the recipe says: the plugin would turn codes into four bytes each."""
    for node in own_nodes(graph, "Embedding"):
        input_ids, weight = required(node.inputs)
        weights.keep_floats(weight)
        replace(node, [call("Gather", [weight, input_ids], {"axis": 0}, domain="")])


def _zeros(graph: ir.Graph, shape: Sequence[int]) -> ir.Value:
    return constant(graph, f"zeros.{'x'.join(map(str, shape))}", np.zeros(shape, np.float16))


def _lower_linear(graph: ir.Graph, weights: GraphWeights) -> None:
    """MatMulNBits of codes; floats are multiplied by their transpose, which the plugin folds.

    Raises:
        RecipeError: a weight has zero points, or other blocks than the plugin takes.
    """
    for node in own_nodes(graph, "Linear"):
        x, weight = required(node.inputs)
        transposed = call("Transpose", [weight], {"perm": [1, 0]}, domain="")
        replace(node, [transposed, call("MatMul", [x, transposed.outputs[0]], domain="")])
    for node in own_nodes(graph, "AffineLinear"):
        name = str(required(node.inputs)[1].name).removesuffix(".codes")
        raise RecipeError(f"{name} has zero points, and the plugin for RTX takes none: give --recipe none")
    for node in own_nodes(graph, "QuantizedLinear"):
        x, codes, scales = required(node.inputs)
        bits = int(attribute(node, "bits"))
        size = block_size(codes, scales, bits)
        rows, blocks = sizes(scales)
        if bits != _BITS:
            name = str(codes.name).removesuffix(".codes")
            raise RecipeError(f"{name} has {bits} bits: the plugin for RTX multiplies by {_BITS} bits, or by floats")
        if size not in _LINEAR_BLOCKS:
            name = str(codes.name).removesuffix(".codes")
            raise RecipeError(f"{name} has blocks of {size}: the plugin for RTX wants 32, 64 or 128")
        attributes: Attributes = {"N": rows, "K": blocks * size, "bits": bits, "block_size": size, "accuracy_level": 0}
        by_block = weights.alias(codes, (rows, blocks, size * bits // 8))
        replace(node, [call("MatMulNBits", [x, by_block, scales], attributes, domain=MICROSOFT)])
