"""The CPU lowering: replaces our operators by those that native kernels run, and by ONNX Runtime's contributed kernels.

Quantised linear layers, experts and the parts of linear attention are operators of ours that native kernels run;
cpu_functions.py has the bodies that run ONNX Runtime's kernels instead (domain com.microsoft). Everything else becomes
ONNX Runtime's kernels. Their limits were measured. If no kernel exists for a recipe, the operator keeps its function
body, which is right but slow.
"""

from __future__ import annotations

import onnx_ir as ir

from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.functions import add_function_bodies
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.lowering.merge import merge_projections
from qwonnx.export.lowering.quantized_ops import quantize_weights
from qwonnx.export.lowering.rewrite import attribute, call, own_nodes, replace, required, sizes
from qwonnx.export.operators.ops import DOMAIN
from qwonnx.export.targets.contributed import (
    MICROSOFT,
    block_size,
    lower_embedding,
    lower_float_experts,
    lower_float_linear,
    replace_experts,
)
from qwonnx.export.targets.cpu_attention import lower_attention
from qwonnx.export.targets.cpu_functions import add_kernel_functions, delta_rule_attributes
from qwonnx.export.targets.cpu_fusion import fuse
from qwonnx.export.targets.target import Activations


def lower_to_cpu(model: ir.Model, weights: GraphWeights, activations: Activations) -> None:
    """Lower a traced model in place. With int8, kernels quantise activations on the fly, which is faster."""
    accuracy_level = 4 if activations is Activations.INT8 else 1
    graph = model.graph
    merge_projections(graph, weights)
    quantize_weights(graph, weights)
    _lower_routed_experts(graph, accuracy_level)
    merge_projections(graph, weights)  # the router became a projection, and has a sibling
    _lower_linear(graph, weights, accuracy_level)
    lower_embedding(graph)
    _lower_linear_attention(graph)
    _drop_flattening(graph)
    lower_attention(model)
    fuse(graph)
    _keep_bfloat16(graph, weights)
    add_kernel_functions(model)
    add_function_bodies(model)
    model.opset_imports[MICROSOFT] = 1


def _lower_routed_experts(graph: ir.Graph, accuracy_level: int) -> None:
    """The kernels take the router's logits, [tokens, experts], and compute softmax, top-k and renormalisation.

    Raises:
        RecipeError: the two matrices of the experts have blocks of different sizes, and QMoE takes one size.
    """
    lower_float_experts(graph)
    for prefix in ("Quantized", "Affine"):
        for node in own_nodes(graph, f"{prefix}RoutedExperts"):
            _, _, *experts = required(node.inputs)
            gate_up, gate_up_scales, *_ = experts[: len(experts) // 2]
            down, down_scales, *_ = experts[len(experts) // 2 :]
            gate_up_bits, down_bits = int(attribute(node, "gate_up_bits")), int(attribute(node, "down_bits"))
            if accuracy_level == 1 and 8 in (gate_up_bits, down_bits):
                continue  # the 8-bit kernel of ONNX Runtime quantises activations at every accuracy level
            size = block_size(gate_up, gate_up_scales, gate_up_bits)
            if size != block_size(down, down_scales, down_bits):
                name = str(gate_up.name).removesuffix(".gate_up_proj.codes")
                raise RecipeError(f"{name} has blocks of two sizes, and the CPU kernel takes one: give one to both")
            attributes = {
                "top_k": attribute(node, "top_k"),
                "gate_up_bits": gate_up_bits,
                "down_bits": down_bits,
                "block_size": size,
                "accuracy_level": accuracy_level,
            }
            replace_experts(graph, node, f"{prefix}Experts", experts, attributes, DOMAIN)


def _lower_linear(graph: ir.Graph, weights: GraphWeights, accuracy_level: int) -> None:
    lower_float_linear(graph)
    for op_type in ("QuantizedLinear", "AffineLinear"):
        for node in own_nodes(graph, op_type):
            x, codes, scales, *zero_points = required(node.inputs)
            bits = int(attribute(node, "bits"))
            size = block_size(codes, scales, bits)
            rows, blocks = sizes(scales)
            attributes = {
                "N": rows,
                "K": blocks * size,
                "bits": bits,
                "block_size": size,
                "accuracy_level": accuracy_level,
            }
            by_block = weights.alias(codes, (rows, blocks, size * bits // 8))
            replace(node, [call(op_type, [x, by_block, scales, *zero_points], attributes)])


def _lower_linear_attention(graph: ir.Graph) -> None:
    """CausalConv stays as it is. The other nodes get the attributes that their functions need."""
    for node in own_nodes(graph, "GatedDeltaRule"):
        _, value_heads, key_dim, value_dim = sizes(required(node.inputs)[5])
        key_heads, epsilon = int(attribute(node, "num_key_heads")), float(attribute(node, "epsilon"))
        attributes = delta_rule_attributes(key_heads, value_heads, key_dim, value_dim, epsilon)
        replace(node, [call("GatedDeltaRule", node.inputs, attributes, num_outputs=2)])
    for node in own_nodes(graph, "GatedRMSNorm"):
        x, _, weight = required(node.inputs)
        attributes = {"num_heads": sizes(x)[-1] // sizes(weight)[0], "epsilon": attribute(node, "epsilon")}
        replace(node, [call("GatedRMSNorm", node.inputs, attributes)])


def _keep_bfloat16(graph: ir.Graph, weights: GraphWeights) -> None:
    """The fused operators take the router and the other small projections as the checkpoint stores them."""
    for op_type, index in (("Mixture", 3), ("DeltaNet", 2)):
        for prefix in ("Quantized", "Affine"):
            for node in own_nodes(graph, prefix + op_type):
                gates = required(node.inputs)[index]
                if len(gates.uses()) == 1:
                    weights.keep_bfloat16(gates)


def _drop_flattening(graph: ir.Graph) -> None:
    """Drop every Reshape of a vector to a vector, as torch puts one in front of index_select."""
    for node in tuple(graph):
        if node.op_type == "Reshape" and node.domain == "":
            x, shape = required(node.inputs)
            tensor = ir.convenience.get_const_tensor(shape)
            if x.shape is not None and len(x.shape) == 1 and tensor is not None and tensor.numpy().tolist() == [-1]:
                node.outputs[0].replace_all_uses_with(x)
                graph.remove(node, safe=True)
