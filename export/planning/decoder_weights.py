"""Every weight of the text model, by name and shape, and how an export stores it: from the configuration alone.

What the modules in modeling/ register, what `GraphWeights` makes of it under a recipe and what the CPU target joins, is
here without torch and without tracing, so that planning takes milliseconds. It is written a second time for that; the
tests compare it, weight by weight and in order, with the traced and lowered graph of every architecture and target.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.siblings import Projection, sibling_groups
from qwonnx.export.quantization.recipe import Storages, WeightStorage

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


class Role(Enum):
    """What a weight is for, which decides what a kernel does with it."""

    EMBEDDING = "rows are looked up"
    PROJECTION = "a matrix that multiplies an activation"
    EXPERTS = "matrices of all experts of a layer, of which a token uses some"
    VECTOR = "norms, decays, the convolution: small, and never quantised"


@dataclass(frozen=True, slots=True)
class Weight:
    """A logical weight, as the exporter names it."""

    name: str
    shape: tuple[int, ...]

    @property
    def role(self) -> Role:
        if self.name == EMBEDDING:
            return Role.EMBEDDING
        if ".experts." in self.name:
            return Role.EXPERTS
        return Role.PROJECTION if len(self.shape) == 2 else Role.VECTOR

    @property
    def num_parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One stored weight: the logical weights that it joins along their rows, and how it is stored."""

    parts: tuple[Weight, ...]
    storage: WeightStorage

    @property
    def weights(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(name, shape) of the parts, as the weight stage has them."""
        return tuple((part.name, part.shape) for part in self.parts)

    @property
    def role(self) -> Role:
        return self.parts[0].role

    @property
    def num_parameters(self) -> int:
        return sum(part.num_parameters for part in self.parts)

    @property
    def num_columns(self) -> int:
        """Input features."""
        return self.parts[0].shape[-1]

    @property
    def num_rows(self) -> int:
        """Output features, of all experts together."""
        return self.num_parameters // self.num_columns

    @property
    def stream_bytes(self) -> tuple[int, ...]:
        """Bytes of the codes (or of the float32 values), scales and zero points."""
        return self.storage.stream_bytes(self.num_rows, self.num_columns)

    @property
    def num_code_bytes(self) -> int:
        """Bytes of the codes, or of the float32 values."""
        return self.stream_bytes[0]

    @property
    def num_scale_bytes(self) -> int:
        return self.storage.num_scale_bytes(self.num_parameters)

    @property
    def num_bytes(self) -> int:
        return sum(self.stream_bytes)


def decoder_weights(config: ModelConfig) -> tuple[Weight, ...]:
    """All weights in the order in which the modules register them. With tied embeddings there is no head."""
    hidden = config.hidden_size
    weights = [Weight(EMBEDDING, (config.vocab_size, hidden))]
    for index, layer_type in enumerate(config.layer_types):
        layer = f"layers.{index}."
        weights.append(Weight(f"{layer}input_layernorm.weight", (hidden,)))
        mixer = _attention if layer_type == "full_attention" else _linear_attention
        weights += mixer(config, layer)
        weights.append(Weight(f"{layer}post_attention_layernorm.weight", (hidden,)))
        mlp = f"{layer}mlp."
        weights += _experts(config, mlp) if config.num_experts else _swiglu(mlp, hidden, config.intermediate_size)
    weights.append(Weight("norm.weight", (hidden,)))
    if not config.tie_word_embeddings:
        weights.append(Weight(HEAD, (config.vocab_size, hidden)))
    return tuple(weights)


def stored_weights(
    config: ModelConfig, storages: Storages, *, target: str, int8_activations: bool
) -> tuple[StoredWeight, ...]:
    """What the weight stage writes, in its order.

    Args:
        config: the model.
        storages: how weights are stored: a recipe, or a plan that knows the checkpoint's codes too.
        target: "cpu" or "portable"; only the former joins projections.
        int8_activations: whether the CPU kernels quantise activations.

    Raises:
        RecipeError: the recipe cannot be applied to a weight.
    """
    weights = decoder_weights(config)
    stored = {weight.name: StoredWeight((weight,), storages.storage(weight.name, weight.shape)) for weight in weights}
    for index in range(config.num_hidden_layers if config.num_experts else 0):
        _check_experts(stored, f"layers.{index}.mlp.experts.")
    if target == "cpu":
        _join(stored, list(_siblings(config)))
        if config.num_experts:
            _join(stored, _routers(config, stored, int8_activations))
    return tuple(stored.values())


def _check_experts(stored: dict[str, StoredWeight], experts: str) -> None:
    """Refuse what the lowering refuses."""
    gate_up, down = experts + "gate_up_proj", experts + "down_proj"
    if stored[gate_up].storage.is_quantized != stored[down].storage.is_quantized:
        raise RecipeError(f"{gate_up} and {down} are stored as one: quantise both, or neither")


def _has_expert_kernel(stored: dict[str, StoredWeight], experts: str, int8_activations: bool) -> bool:
    """Whether a CPU kernel runs a layer's experts; without one, their router stays inside the operator's body."""
    bits = [stored[experts + name].storage.bits for name in ("gate_up_proj", "down_proj")]
    return int8_activations or 8 not in bits  # the 8-bit kernel quantises activations whatever it is told


def _siblings(config: ModelConfig) -> Iterator[list[str]]:
    """The projections that share an input, in the order in which the modules apply them."""
    feed_forward = ["gate_proj", "up_proj"]
    if config.num_experts:
        feed_forward = ["shared_expert_gate", *(f"shared_expert.{name}" for name in feed_forward)]
    for index, layer_type in enumerate(config.layer_types):
        if layer_type == "full_attention":
            yield [f"layers.{index}.self_attn.{name}_proj.weight" for name in "qkv"]
        else:
            yield [f"layers.{index}.linear_attn.in_proj_{name}.weight" for name in ("qkv", "b", "a", "z")]
        yield [f"layers.{index}.mlp.{name}.weight" for name in feed_forward]


def _join(stored: dict[str, StoredWeight], candidates: list[list[str]]) -> None:
    """Join the siblings among each of some lists of names; a joined weight goes to the end, under its first name."""
    projections = (
        Projection(name, index, stored[name].storage, stored[name].num_parameters)
        for index, names in enumerate(candidates)
        for name in names
    )
    for group in sibling_groups(projections):
        parts = [stored.pop(name) for name in group]
        stored[group[0]] = StoredWeight(tuple(part for whole in parts for part in whole.parts), parts[0].storage)


def _routers(config: ModelConfig, stored: dict[str, StoredWeight], int8_activations: bool) -> list[list[str]]:
    """Every router that a kernel leaves outside, with what the shared expert's gate is stored in by now."""
    stored_in = {part.name: name for name, whole in stored.items() for part in whole.parts}
    layers = (f"layers.{index}.mlp." for index in range(config.num_hidden_layers))
    return [
        [f"{layer}gate.weight", stored_in[f"{layer}shared_expert_gate.weight"]]
        for layer in layers
        if _has_expert_kernel(stored, f"{layer}experts.", int8_activations)
    ]


def _attention(config: ModelConfig, layer: str) -> list[Weight]:
    hidden, head_dim = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    shapes = {
        "q_proj": (2 * queries, hidden),  # the query and its gate
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "q_norm": (head_dim,),
        "k_norm": (head_dim,),
    }
    return [Weight(f"{layer}self_attn.{name}.weight", shape) for name, shape in shapes.items()]


def _linear_attention(config: ModelConfig, layer: str) -> list[Weight]:
    hidden, num_heads = config.hidden_size, config.linear_num_value_heads
    values = num_heads * config.linear_value_head_dim
    channels = 2 * config.linear_num_key_heads * config.linear_key_head_dim + values
    shapes: dict[str, tuple[int, ...]] = {
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
    return [Weight(f"{layer}linear_attn.{name}", shape) for name, shape in shapes.items()]


def _swiglu(mlp: str, hidden: int, inner: int) -> list[Weight]:
    return [
        Weight(f"{mlp}gate_proj.weight", (inner, hidden)),
        Weight(f"{mlp}up_proj.weight", (inner, hidden)),
        Weight(f"{mlp}down_proj.weight", (hidden, inner)),
    ]


def _experts(config: ModelConfig, mlp: str) -> list[Weight]:
    hidden, inner, count = config.hidden_size, config.moe_intermediate_size, config.num_experts
    return [
        Weight(f"{mlp}gate.weight", (count, hidden)),
        Weight(f"{mlp}experts.gate_up_proj", (count, 2 * inner, hidden)),
        Weight(f"{mlp}experts.down_proj", (count, hidden, inner)),
        *_swiglu(f"{mlp}shared_expert.", hidden, config.shared_expert_intermediate_size),
        Weight(f"{mlp}shared_expert_gate.weight", (1, hidden)),
    ]
