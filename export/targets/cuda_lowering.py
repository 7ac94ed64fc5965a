"""The CUDA lowering: ONNX Runtime's contributed kernels for NVIDIA GPUs, in half precision.

    Linear                  MatMulNBits of codes in blocks of 32; FusedMatMul of floats
    attention               one projection of queries, keys, values and gates; GroupQueryAttention with norms and rotary
                            embedding inside (outside over a quantised cache)
    DeltaNet                CausalConvWithState with channels last, GatedDeltaNet on its packed output, GatedRMSNorm
    experts                 QMoE, raw codes; inner sizes are filled up to multiples of 64
    shared expert           QuickGelu is SiLU with alpha 1; GatedAdd
    residual and norm       SkipSimplifiedLayerNormalization

Every rule of a kernel that its types do not show is checked here; cuda_kernels.py checks the types. Nothing falls back
to the CPU, so that a step of one token can be captured as a CUDA graph: there is no control flow, no shape arithmetic,
no reduction of integers (cuDNN's), and lengths come from the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import GATE_UP
from qwonnx.export.checkpoint.weight_part import Form
from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.constants import constant, integers
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.lowering.merge import merge_projections
from qwonnx.export.lowering.quantized_ops import quantize_weights
from qwonnx.export.lowering.rewrite import Attributes, attribute, call, own_nodes, replace, required, sizes
from qwonnx.export.lowering.siblings import joined_name
from qwonnx.export.modeling.rotary import rope_frequencies
from qwonnx.export.targets.cpu_functions import CACHE_BITS, SWIGLU
from qwonnx.export.targets.cuda_kernels import without_kernel
from qwonnx.export.targets.function_body import MICROSOFT
from qwonnx.export.targets.target import LoweringFacts
from qwonnx.runtime.artifact.manifest import StateSpec

# QMoE wants hidden and inner sizes that this divides.
EXPERT_MULTIPLE = 64
EXPERT_BLOCKS = (32, 64, 128)  # that QMoE takes
_ROTARY_MULTIPLE = 16  # of GroupQueryAttention
_LARGEST_BLOCK = 128  # that MatMulNBits computes one row with
_FULL, _INT32, _INT64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64
_STATE_TYPES = {"float32": "FLOAT", "float16": "FLOAT16", "int8": "INT8", "uint8": "UINT8"}


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Inputs of a step that the kernels take where the traced graph has others."""

    positions: ir.Value  # int64 [B, T]
    last_positions: ir.Value  # int32 [B]: the place of each row's last token in the cache
    total_sequence_length: ir.Value  # int32 []: on the host
    cos: ir.Value  # [max_position_embeddings, rotary_dim / 2]
    sin: ir.Value


def lower_to_cuda(model: ir.Model, weights: GraphWeights, facts: LoweringFacts) -> None:
    """Lower a traced model in place.

    Args:
        model: as traced; a quantised cache is lowered already.
        weights: the table of its weights, in half precision.
        facts: of the model.

    Raises:
        RecipeError: no kernel takes the model, or weights that are stored so.
    """
    graph = model.graph
    _check_sizes(facts.config)
    step = _step_inputs(graph, facts.config)
    _lower_attention(graph, weights, step)
    _lower_delta_net(graph, weights)
    _fill_experts(graph, weights)
    _fuse_gates(graph)
    merge_projections(graph, weights)
    quantize_weights(graph, weights)
    _lower_experts(graph)
    merge_projections(graph, weights)
    _lower_linear(graph, weights)
    _lower_embedding(graph)
    _fuse_norms(graph)
    _give_float_logits(graph)
    _retype(graph, weights, facts.states)
    model.opset_imports[MICROSOFT] = 1
    passes.RemoveUnusedNodesPass()(model)
    if missing := without_kernel(model):
        raise RecipeError(f"{missing[0]}: this model cannot be exported for CUDA")


def _check_sizes(config: ModelConfig) -> None:
    """Refuse what no kernel takes whatever the recipe."""
    if config.num_experts and config.hidden_size % EXPERT_MULTIPLE:
        raise RecipeError(
            f"hidden_size is {config.hidden_size} and CUDA's experts want a multiple of {EXPERT_MULTIPLE}: this model"
            " cannot be exported for CUDA"
        )
    if config.rotary_dim % _ROTARY_MULTIPLE:
        raise RecipeError(
            f"{config.rotary_dim} values of a head are rotated and CUDA's attention wants a multiple of"
            f" {_ROTARY_MULTIPLE}: this model cannot be exported for CUDA"
        )


def _step_inputs(graph: ir.Graph, config: ModelConfig) -> StepInputs:
    """Add the inputs, and the tables of rotary angles."""
    batch, sequence = next(value for value in graph.inputs if value.name == "input_ids").shape or (None, None)
    inputs = {
        "positions": ir.Value(name="positions", type=ir.TensorType(_INT64), shape=ir.Shape([batch, sequence])),
        "last_positions": ir.Value(name="last_positions", type=ir.TensorType(_INT32), shape=ir.Shape([batch])),
        "total_sequence_length": ir.Value(name="total_sequence_length", type=ir.TensorType(_INT32), shape=ir.Shape([])),
    }
    position_ids = next(index for index, value in enumerate(graph.inputs) if value.name == "position_ids")
    past_lengths = next(value for value in graph.inputs if value.name == "past_lengths")
    graph.inputs[position_ids] = inputs["positions"]
    place = graph.inputs.index(past_lengths)
    graph.inputs[place : place + 1] = [inputs["last_positions"], inputs["total_sequence_length"]]
    return StepInputs(**inputs, **_rotary_tables(graph, config))


def _rotary_tables(graph: ir.Graph, config: ModelConfig) -> dict[str, ir.Value]:
    """cos and sin of all positions, for text: the three axes of positions are equal."""
    frequencies, factor = rope_frequencies(config.rope, config.rotary_dim)
    angles = np.outer(np.arange(config.max_position_embeddings, dtype=np.float32), frequencies.numpy())
    return {
        name: constant(graph, f"rotary.{name}", (function(angles) * factor).astype(np.float16))
        for name, function in (("cos", np.cos), ("sin", np.sin))
    }


def _lower_attention(graph: ir.Graph, weights: GraphWeights, step: StepInputs) -> None:
    """One projection of queries, keys, values and gates, and the kernel, which norms, rotates, appends and attends."""
    for op_type, bits in CACHE_BITS.items():
        for node in own_nodes(graph, op_type):
            query, key, value, _gate, past_key, past_value, _lengths, *scales = required(node.inputs)
            q_norm, q_proj = _projection(query)
            k_norm, k_proj = _projection(key)
            v_proj = _producer(value, "Linear")
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
    norm = _producer(_input(_producer(rotated, "RotaryEmbedding")), "RMSNormalization")
    return norm, _producer(_input(norm), "Linear")


def _producer(value: ir.Value, op_type: str) -> ir.Node:
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


def _lower_delta_net(graph: ir.Graph, weights: GraphWeights) -> None:
    for node in own_nodes(graph, "CausalConv"):
        x, taps, past = required(node.inputs)
        convolution: Attributes = {"activation": "silu", "channels_last": 1}
        inputs = [x, taps, None, past]
        replace(node, [call("CausalConvWithState", inputs, convolution, domain=MICROSOFT, num_outputs=2)])
    for node in own_nodes(graph, "GatedDeltaRule"):
        qkv, b, a, decay_scale, dt_bias, past = required(node.inputs)
        projections = [_producer(value, "Linear") for value in (b, a)]
        x, matrices = _input(projections[0]), [required(each.inputs)[1] for each in projections]
        joined = weights.join(matrices, joined_name([str(matrix.name) for matrix in matrices]))
        product = call("Linear", [x, joined])
        exact = call("Cast", [product.outputs[0]], {"to": _FULL.value}, domain="")
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


def _fill_experts(graph: ir.Graph, weights: GraphWeights) -> None:
    for node in own_nodes(graph, "RoutedExperts"):
        for matrix in required(node.inputs)[2:]:
            weights.fill(matrix, EXPERT_MULTIPLE)


def _lower_experts(graph: ir.Graph) -> None:
    """QMoE of codes, MoE of floats.

    Raises:
        RecipeError: the two matrices have other blocks or bits than the kernel takes.
    """
    for node in own_nodes(graph, "RoutedExperts"):
        _, _, gate_up, down = required(node.inputs)
        _replace_experts(graph, node, "MoE", [gate_up, None, down], {})
    for prefix in ("Quantized", "Affine"):
        for node in own_nodes(graph, f"{prefix}RoutedExperts"):
            _, _, *tensors = required(node.inputs)
            first, second = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
            bits = {int(attribute(node, f"{matrix}_bits")) for matrix in ("gate_up", "down")}
            name = str(first[0].name).removesuffix(f".{GATE_UP}.codes")
            if len(bits) > 1:
                raise RecipeError(f"{name} has matrices of {min(bits)} and {max(bits)} bits: CUDA wants one for both")
            (width,) = bits
            blocks = {_block_size(codes, scales, width) for codes, scales, *_ in (first, second)}
            if len(blocks) > 1 or blocks - set(EXPERT_BLOCKS):
                found = " and ".join(map(str, sorted(blocks)))
                raise RecipeError(f"{name} has blocks of {found}: CUDA wants one size of 32, 64 or 128 for both")
            kernel = {"expert_weight_bits": width, "block_size": blocks.pop(), "weights_prepacked": 0}
            inputs = [*first[:2], None, *second[:2], *[None] * 4, *first[2:], *second[2:]]
            _replace_experts(graph, node, "QMoE", inputs if prefix == "Affine" else inputs[:5], kernel)


def _replace_experts(
    graph: ir.Graph, node: ir.Node, op_type: str, matrices: Sequence[ir.Value | None], attributes: Mapping[str, int]
) -> None:
    x, router = required(node.inputs)[:2]
    logits = call("Linear", [x, router])
    flat = call("Reshape", [logits.outputs[0], integers(graph, [-1, sizes(router)[0]])], domain="")
    given = SWIGLU | {"k": int(attribute(node, "top_k"))} | dict(attributes)
    routed = call(op_type, [x, flat.outputs[0], *matrices], given, domain=MICROSOFT)
    replace(node, [logits, flat, routed])


def _fuse_gates(graph: ir.Graph) -> None:
    """x * sigmoid(x) becomes QuickGelu, and routed + shared * gate becomes GatedAdd."""
    for node in tuple(graph):
        if node.op_type == "Mul" and not node.domain:
            x, sigmoid = required(node.inputs)
            opened = sigmoid.producer()
            if opened is not None and opened.op_type == "Sigmoid" and _input(opened) is x:
                replace(node, [call("QuickGelu", [x], {"alpha": 1.0}, domain=MICROSOFT)])
    for node in tuple(graph):
        if node.op_type == "Add" and not node.domain:
            routed, share = required(node.inputs)
            product = share.producer()
            if product is not None and product.op_type == "Mul" and not product.domain:
                gate, shared = required(product.inputs)
                opened = gate.producer()
                if opened is not None and opened.op_type == "Sigmoid":
                    replace(node, [call("GatedAdd", [routed, shared, gate], domain=MICROSOFT)])


def _lower_linear(graph: ir.Graph, weights: GraphWeights) -> None:
    for node in own_nodes(graph, "Linear"):
        replace(node, [call("FusedMatMul", node.inputs, {"transB": 1}, domain=MICROSOFT)])
    for op_type in ("QuantizedLinear", "AffineLinear"):
        for node in own_nodes(graph, op_type):
            x, codes, scales, *zero_points = required(node.inputs)
            bits = int(attribute(node, "bits"))
            block_size = _block_size(codes, scales, bits)
            rows, blocks = sizes(scales)
            if block_size > _LARGEST_BLOCK:
                name = str(codes.name).removesuffix(".codes")
                raise RecipeError(f"{name} has blocks of {block_size}: CUDA wants at most {_LARGEST_BLOCK}")
            attributes = {"N": rows, "K": blocks * block_size, "bits": bits, "block_size": block_size}
            by_block = weights.alias(codes, (rows, blocks, block_size * bits // 8))
            inputs = [x, by_block, scales, *zero_points]
            replace(node, [call("MatMulNBits", inputs, attributes, domain=MICROSOFT)])


def _lower_embedding(graph: ir.Graph) -> None:
    for node in own_nodes(graph, "Embedding"):
        input_ids, weight = required(node.inputs)
        replace(node, [call("Gather", [weight, input_ids], {"axis": 0}, domain="")])
    for op_type in ("QuantizedEmbedding", "AffineEmbedding"):
        for node in own_nodes(graph, op_type):
            input_ids, codes, scales, *zero_points = required(node.inputs)
            bits = int(attribute(node, "bits"))
            attributes = {
                "bits": bits,
                "block_size": _block_size(codes, scales, bits),
                "gather_axis": 0,
                "quantize_axis": 1,
            }
            inputs = [codes, input_ids, scales, *zero_points]
            replace(node, [call("GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)])


def _fuse_norms(graph: ir.Graph) -> None:
    """A sum and its norm are one kernel, which gives both."""
    for node in tuple(graph):
        if node.op_type != "RMSNormalization":
            continue
        total, weight = required(node.inputs)
        added = total.producer()
        if added is None or added.op_type != "Add":
            continue
        outputs = [ir.Value(name=name) for name in (f"{total.name}.norm", "", "", f"{total.name}.sum")]
        both = ir.node(
            "SkipSimplifiedLayerNormalization",
            [*required(added.inputs), weight],
            {"epsilon": attribute(node, "epsilon")},
            domain=MICROSOFT,
            outputs=outputs,
        )
        replace(added, [both], [outputs[3]])
        replace(node, [], [outputs[0]])


def _give_float_logits(graph: ir.Graph) -> None:
    """The sampler computes in float32."""
    (index,) = (index for index, value in enumerate(graph.outputs) if value.name == "logits")
    half = graph.outputs[index]
    cast = call("Cast", [half], {"to": _FULL.value}, domain="")
    logits = cast.outputs[0]
    logits.name, logits.shape, logits.type = half.name, half.shape, ir.TensorType(_FULL)
    half.name = "logits.half"
    graph.append(cast)
    graph.outputs[index] = logits


def _retype(graph: ir.Graph, weights: GraphWeights, states: Sequence[StateSpec]) -> None:
    """Give weights and states the types in which they are stored; those of other values follow from them."""
    weights.retype()
    for node in graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.type = output.shape = None
    values = {str(value.name): value for value in (*graph.inputs, *graph.outputs)}
    for state in states:
        for name in (state.past, state.present):
            shape = values[name].shape
            assert shape is not None
            batch = shape[0]
            values[name].type = ir.TensorType(ir.DataType[_STATE_TYPES[state.dtype]])
            sizes_of = [batch if size == "batch" else size for size in state.shape]
            values[name].shape = ir.Shape(sizes_of)


def _block_size(codes: ir.Value, scales: ir.Value, bits: int) -> int:
    return sizes(codes)[-1] * 8 // bits // sizes(scales)[-1]
