"""Names and shapes of the text model's weights, and how an export stores them: from the configuration alone.

A traced graph has the same facts, but a plan does not wait for a trace or for torch. So two things are written twice:
the weights that the modules in modeling/ register (here), and those that a target's lowering joins (Target.join). Tests
compare both with the traced and lowered graph, weight by weight and in order, for every published configuration.
"""

from __future__ import annotations

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_names import DOWN, EMBEDDING, GATE_UP, HEAD, ExpertTensor, tied_weights
from qwonnx.export.checkpoint.weight_part import WeightPart
from qwonnx.export.errors import RecipeError
from qwonnx.export.quantization.recipe import Storages
from qwonnx.export.targets.target import TargetChoice
from qwonnx.export.weight_files.weight_item import WeightItem

Shapes = dict[str, tuple[int, ...]]


def planned_shapes(config: ModelConfig) -> Shapes:
    """Shapes of all weights by name, in the order in which the modules register them; without tied ones."""
    hidden = config.hidden_size
    shapes: Shapes = {EMBEDDING: (config.vocab_size, hidden)}
    for index, layer_type in enumerate(config.layer_types):
        layer = f"layers.{index}."
        shapes[f"{layer}input_layernorm.weight"] = (hidden,)
        shapes |= (_attention if layer_type == "full_attention" else _linear_attention)(config, layer)
        shapes[f"{layer}post_attention_layernorm.weight"] = (hidden,)
        mlp = f"{layer}mlp."
        shapes |= _experts(config, mlp) if config.num_experts else _swiglu(mlp, hidden, config.intermediate_size)
    shapes |= {"norm.weight": (hidden,), HEAD: (config.vocab_size, hidden)}
    for name in tied_weights(config):
        del shapes[name]
    return shapes


def planned_weights(config: ModelConfig, storages: Storages, choice: TargetChoice) -> tuple[WeightItem, ...]:
    """The items that the weight stage will write, in its order.

    Args:
        config: the model.
        storages: how weights are stored: a recipe, or a plan that knows the checkpoint's codes too.
        choice: the target, which may join weights.

    Raises:
        RecipeError: the recipe cannot be applied to a weight.
    """
    shapes = planned_shapes(config)
    items = [
        WeightItem(name, (WeightPart(name, shape),), storages.storage(name, shape)) for name, shape in shapes.items()
    ]
    is_quantized = {item.name: item.storage.is_quantized for item in items}
    for name in is_quantized:
        tensor = ExpertTensor.of(name)
        if tensor is None or not tensor.is_gate_up:
            continue
        if is_quantized[name] != is_quantized[tensor.sibling]:  # the lowering refuses this, too
            raise RecipeError(f"{name} and {tensor.sibling} are stored as one: quantise both, or neither")
    return tuple(choice.target.join(config, items, storages, choice.activations))


def _attention(config: ModelConfig, layer: str) -> Shapes:
    hidden, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    shapes: Shapes = {
        "q_proj": (2 * queries, hidden),  # the query and its gate
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "q_norm": (head_dim,),
        "k_norm": (head_dim,),
    }
    return {f"{layer}self_attn.{name}.weight": shape for name, shape in shapes.items()}


def _linear_attention(config: ModelConfig, layer: str) -> Shapes:
    hidden, num_heads = config.hidden_size, config.linear_num_value_heads
    values = num_heads * config.linear_value_head_dim
    channels = 2 * config.linear_num_key_heads * config.linear_key_head_dim + values
    shapes: Shapes = {
        "decay_scale": (num_heads,),
        "dt_bias": (num_heads,),
        "in_proj_qkv.weight": (channels, hidden),
        "in_proj_z.weight": (values, hidden),
        "in_proj_b.weight": (num_heads, hidden),
        "in_proj_a.weight": (num_heads, hidden),
        "conv1d.weight": (channels, 1, config.linear_conv_kernel_dim),
        "norm.weight": (config.linear_value_head_dim,),
        "out_proj.weight": (hidden, values),
    }
    return {f"{layer}linear_attn.{name}": shape for name, shape in shapes.items()}


def _swiglu(mlp: str, hidden: int, inner: int) -> Shapes:
    return {
        f"{mlp}gate_proj.weight": (inner, hidden),
        f"{mlp}up_proj.weight": (inner, hidden),
        f"{mlp}down_proj.weight": (hidden, inner),
    }


def _experts(config: ModelConfig, mlp: str) -> Shapes:
    hidden, inner, count = config.hidden_size, config.moe_intermediate_size, config.num_experts
    return {
        f"{mlp}gate.weight": (count, hidden),
        f"{mlp}experts.{GATE_UP}": (count, 2 * inner, hidden),
        f"{mlp}experts.{DOWN}": (count, hidden, inner),
        **_swiglu(f"{mlp}shared_expert.", hidden, config.shared_expert_intermediate_size),
        f"{mlp}shared_expert_gate.weight": (1, hidden),
    }
