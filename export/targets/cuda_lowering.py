"""The CUDA lowering: ONNX Runtime's contributed kernels for NVIDIA GPUs, in half precision.

    Linear                  MatMulNBits of codes in blocks of 32; FusedMatMul of floats
    attention               one projection of queries, keys, values and gates; GroupQueryAttention with norms and rotary
                            embedding inside (outside over a quantised cache)
    DeltaNet                CausalConvWithState with channels last, GatedDeltaNet on its packed output, GatedRMSNorm
    experts                 QMoE, raw codes; inner sizes are filled up to multiples of 64
    shared expert           QuickGelu is SiLU with alpha 1; GatedAdd
    residual and norm       SkipSimplifiedLayerNormalization

cuda_weights.py checks the rules of kernels that types do not show; cuda_kernels.py checks the types. Nothing falls back
to the CPU, so that a step of one token can be captured as a CUDA graph: there is no control flow, no shape arithmetic,
no reduction of integers (cuDNN's), and lengths come from the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.constants import constant, integers
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.lowering.merge import merge_projections
from qwonnx.export.lowering.quantized_ops import quantize_weights
from qwonnx.export.lowering.rewrite import attribute, call, own_nodes, replace, required, sizes
from qwonnx.export.modeling.rotary import rope_frequencies
from qwonnx.export.targets.contributed import (
    MICROSOFT,
    SWIGLU,
    block_size,
    lower_embedding,
    lower_float_experts,
    lower_float_linear,
    replace_experts,
)
from qwonnx.export.targets.cuda_kernels import without_kernel
from qwonnx.export.targets.cuda_mixers import StepInputs, lower_attention, lower_delta_net
from qwonnx.export.targets.cuda_weights import EXPERT_MULTIPLE, check_weights
from qwonnx.export.targets.target import LoweringFacts
from qwonnx.runtime.artifact.manifest import StateSpec

_FULL, _INT32, _INT64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64
# of states in the graph, by their dtype in the manifest
_STATE_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
    "float8e4m3fn": ir.DataType.FLOAT8E4M3FN,
}


def lower_to_cuda(model: ir.Model, weights: GraphWeights, facts: LoweringFacts, num_top_logits: int) -> None:
    """Lower a traced model in place.

    Args:
        model: as traced; a quantised cache is lowered already.
        weights: the table of its weights, in half precision.
        facts: of the model.
        num_top_logits: of a row that are also given apart, with their tokens.

    Raises:
        RecipeError: no kernel takes the model, or weights that are stored so.
    """
    graph = model.graph
    check_weights(facts.config, weights.items())
    step = step_inputs(graph, facts.config, ir.DataType[weights.type.name])
    lower_attention(graph, weights, step)
    lower_delta_net(graph, weights)
    fill_experts(graph, weights, EXPERT_MULTIPLE)
    _fuse_gates(graph)
    merge_projections(graph, weights)
    quantize_weights(graph, weights)
    _lower_experts(graph)
    merge_projections(graph, weights)
    _lower_linear(graph, weights)
    lower_embedding(graph)
    _fuse_norms(graph)
    _give_top_logits(graph, give_float_logits(graph), num_top_logits)
    give_stored_types(graph, weights, facts.states)
    model.opset_imports[MICROSOFT] = 1
    passes.RemoveUnusedNodesPass()(model)
    if missing := without_kernel(model):
        raise RecipeError(f"{missing[0]}: this model cannot be exported for CUDA")


def step_inputs(graph: ir.Graph, config: ModelConfig, half: ir.DataType) -> StepInputs:
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
    return StepInputs(**inputs, **_rotary_tables(graph, config, half))


def _rotary_tables(graph: ir.Graph, config: ModelConfig, half: ir.DataType) -> dict[str, ir.Value]:
    """cos and sin of all positions, for text: the three axes of positions are equal."""
    frequencies, factor = rope_frequencies(config.rope, config.rotary_dim)
    angles = np.outer(np.arange(config.max_position_embeddings, dtype=np.float32), frequencies.numpy())
    return {
        name: constant(graph, f"rotary.{name}", (function(angles) * factor).astype(half.numpy()))
        for name, function in (("cos", np.cos), ("sin", np.sin))
    }


def fill_experts(graph: ir.Graph, weights: GraphWeights, multiple: int) -> None:
    """Fill up the inner sizes of experts with zeros to a multiple."""
    for node in own_nodes(graph, "RoutedExperts"):
        for matrix in required(node.inputs)[2:]:
            weights.fill(matrix, multiple)


def _lower_experts(graph: ir.Graph) -> None:
    """QMoE of codes, MoE of floats."""
    lower_float_experts(graph)
    for prefix in ("Quantized", "Affine"):
        for node in own_nodes(graph, f"{prefix}RoutedExperts"):
            _, _, *tensors = required(node.inputs)
            first, second = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
            bits = int(attribute(node, "gate_up_bits"))
            kernel = SWIGLU | {"k": attribute(node, "top_k"), "expert_weight_bits": bits}
            kernel |= {"block_size": block_size(first[0], first[1], bits), "weights_prepacked": 0}  # default: packed
            inputs = [*first[:2], None, *second[:2], *[None] * 4, *first[2:], *second[2:]]
            inputs = inputs if prefix == "Affine" else inputs[:5]
            replace_experts(graph, node, "QMoE", inputs, kernel, MICROSOFT)


def _fuse_gates(graph: ir.Graph) -> None:
    """x * sigmoid(x) becomes QuickGelu, and routed + shared * gate becomes GatedAdd."""
    for node in tuple(graph):
        if node.op_type == "Mul" and not node.domain:
            x, sigmoid = required(node.inputs)
            opened = sigmoid.producer()
            if opened is not None and opened.op_type == "Sigmoid" and required(opened.inputs)[0] is x:
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
    lower_float_linear(graph)
    for op_type in ("QuantizedLinear", "AffineLinear"):
        for node in own_nodes(graph, op_type):
            x, codes, scales, *zero_points = required(node.inputs)
            bits = int(attribute(node, "bits"))
            size = block_size(codes, scales, bits)
            rows, blocks = sizes(scales)
            attributes = {"N": rows, "K": blocks * size, "bits": bits, "block_size": size}
            by_block = weights.alias(codes, (rows, blocks, size * bits // 8))
            inputs = [x, by_block, scales, *zero_points]
            replace(node, [call("MatMulNBits", inputs, attributes, domain=MICROSOFT)])


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


def give_float_logits(graph: ir.Graph) -> ir.Value:
    """All logits in float32, in which the sampler computes."""
    half = next(value for value in graph.outputs if value.name == "logits")
    cast = call("Cast", [half], {"to": _FULL.value}, domain="")
    logits = cast.outputs[0]
    logits.name, logits.shape, logits.type = half.name, half.shape, ir.TensorType(_FULL)
    half.name = "logits.half"
    graph.append(cast)
    graph.outputs[graph.outputs.index(half)] = logits
    return logits


def _give_top_logits(graph: ir.Graph, logits: ir.Value, num_top: int) -> None:
    """The largest logits of each row, and their tokens."""
    assert logits.shape is not None
    *shape, vocab_size = logits.shape
    assert isinstance(vocab_size, int)
    count = min(num_top, vocab_size)
    best = {"axis": -1, "sorted": 1}
    largest = call("TopK", [logits, integers(graph, [count])], best, domain="", num_outputs=2)
    for value, name, dtype in zip(largest.outputs, ("top_logits", "top_ids"), (_FULL, _INT64), strict=True):
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape([*shape, count])
    graph.append(largest)
    place = graph.outputs.index(logits) + 1
    graph.outputs[place:place] = largest.outputs


def give_stored_types(graph: ir.Graph, weights: GraphWeights, states: Sequence[StateSpec]) -> None:
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
            values[name].type = ir.TensorType(_STATE_TYPES[state.dtype])
            sizes_of = [batch if size == "batch" else size for size in state.shape]
            values[name].shape = ir.Shape(sizes_of)
