"""The tensors of a checkpoint, and the distributions of their values.

No distribution is that of a default initialisation: a norm that is 0 (of `1 + w`) or 1, a gate at one half or equal
projections would hide a mistake in the part that reads them. Standard deviations keep activations near one, so that a
mistake in any layer shows in the logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor: its name without the text model's prefix, its shape, and how its values are drawn.

    kind "normal" takes (mean, standard deviation), "uniform" and "log_uniform" take (low, high); "log_uniform" draws
    the logarithm of a value that is uniform in its own logarithm, as in A_log. keep_float32 marks tensors that the
    published checkpoints always store in F32.
    """

    name: str
    shape: tuple[int, ...]
    kind: str = "normal"
    low: float = 0.0  # or the mean
    high: float = 1.0  # or the standard deviation
    keep_float32: bool = False


def text_tensors(text: Mapping[str, Any], *, prefix: str = "") -> Iterator[TensorPlan]:
    """All tensors of the text model but lm_head, experts fused, in the order of the layers."""
    hidden = int(text["hidden_size"])
    yield TensorPlan(f"{prefix}embed_tokens.weight", (int(text["vocab_size"]), hidden))
    for index, layer_type in enumerate(text["layer_types"]):
        layer = f"{prefix}layers.{index}."
        yield _norm(f"{layer}input_layernorm.weight", hidden)
        yield from _linear_attention(layer, text) if layer_type == "linear_attention" else _attention(layer, text)
        yield _norm(f"{layer}post_attention_layernorm.weight", hidden)
        yield from _feed_forward(layer, text)
    yield _norm(f"{prefix}norm.weight", hidden)


def lm_head(text: Mapping[str, Any]) -> TensorPlan:
    """The output projection, which gives logits of about unit variance."""
    hidden = int(text["hidden_size"])
    return TensorPlan("lm_head.weight", (int(text["vocab_size"]), hidden), high=1.0 / math.sqrt(hidden))


def mtp_tensors(text: Mapping[str, Any]) -> Iterator[TensorPlan]:
    """The multi-token-prediction head: one full-attention layer and the tensors that join it to the model."""
    hidden = int(text["hidden_size"])
    yield _projection("mtp.fc.weight", hidden, 2 * hidden)
    yield _norm("mtp.norm.weight", hidden)
    yield _norm("mtp.pre_fc_norm_embedding.weight", hidden)
    yield _norm("mtp.pre_fc_norm_hidden.weight", hidden)
    layer = "mtp.layers.0."
    yield _norm(f"{layer}input_layernorm.weight", hidden)
    yield from _attention(layer, text)
    yield _norm(f"{layer}post_attention_layernorm.weight", hidden)
    yield from _feed_forward(layer, text)


def vision_tensors(vision: Mapping[str, Any]) -> Iterator[TensorPlan]:
    """The vision tower: 12 tensors a block and 9 around them."""
    hidden, inner = int(vision["hidden_size"]), int(vision["intermediate_size"])
    patch, frames = int(vision["patch_size"]), int(vision["temporal_patch_size"])
    merged = hidden * int(vision["spatial_merge_size"]) ** 2
    visual = "model.visual."

    def linear(name: str, rows: int, columns: int) -> Iterator[TensorPlan]:
        yield _projection(f"{visual}{name}.weight", rows, columns)
        yield TensorPlan(f"{visual}{name}.bias", (rows,), high=0.1)

    def layer_norm(name: str) -> Iterator[TensorPlan]:
        yield TensorPlan(f"{visual}{name}.weight", (hidden,), low=1.0, high=0.2)
        yield TensorPlan(f"{visual}{name}.bias", (hidden,), high=0.1)

    pixels = int(vision["in_channels"]) * frames * patch * patch
    yield TensorPlan(
        f"{visual}patch_embed.proj.weight",
        (hidden, int(vision["in_channels"]), frames, patch, patch),
        high=1.0 / math.sqrt(pixels),
    )
    yield TensorPlan(f"{visual}patch_embed.proj.bias", (hidden,), high=0.1)
    yield TensorPlan(f"{visual}pos_embed.weight", (int(vision["num_position_embeddings"]), hidden), high=0.5)
    for index in range(int(vision["depth"])):
        block = f"blocks.{index}."
        yield from layer_norm(f"{block}norm1")
        yield from layer_norm(f"{block}norm2")
        yield from linear(f"{block}attn.qkv", 3 * hidden, hidden)
        yield from linear(f"{block}attn.proj", hidden, hidden)
        yield from linear(f"{block}mlp.linear_fc1", inner, hidden)
        yield from linear(f"{block}mlp.linear_fc2", hidden, inner)
    yield from layer_norm("merger.norm")
    yield from linear("merger.linear_fc1", merged, merged)
    yield from linear("merger.linear_fc2", int(vision["out_hidden_size"]), merged)


def expert_tensors(plan: TensorPlan) -> Iterator[TensorPlan]:
    """Fused experts [E, rows, columns] as one matrix for each expert and projection; gate rows come before up rows."""
    experts, _, kind = plan.name.rpartition(".")
    num_experts, rows, columns = plan.shape
    projections = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
    for expert in range(num_experts):
        for projection in projections:
            name = f"{experts}.{expert}.{projection}.weight"
            yield replace(plan, name=name, shape=(rows // len(projections), columns))


def _norm(name: str, size: int) -> TensorPlan:
    # Centred on zero as stored (the model adds one), wide enough that a missing +1 cannot pass.
    return TensorPlan(name, (size,), low=0.1, high=0.3)


def _projection(name: str, rows: int, columns: int, *, gain: float = 1.0) -> TensorPlan:
    return TensorPlan(name, (rows, columns), high=gain / math.sqrt(columns))


def _attention(layer: str, text: Mapping[str, Any]) -> Iterator[TensorPlan]:
    hidden, head_dim = int(text["hidden_size"]), int(text["head_dim"])
    num_heads, num_kv_heads = int(text["num_attention_heads"]), int(text["num_key_value_heads"])
    attention = f"{layer}self_attn."
    yield _projection(f"{attention}q_proj.weight", 2 * num_heads * head_dim, hidden)
    yield _projection(f"{attention}k_proj.weight", num_kv_heads * head_dim, hidden)
    yield _projection(f"{attention}v_proj.weight", num_kv_heads * head_dim, hidden)
    # Averaged values halved by their gate are small: the gain brings the layer's output back to the others' size.
    yield _projection(f"{attention}o_proj.weight", hidden, num_heads * head_dim, gain=2.0)
    # Larger than one, so that attention picks a few positions instead of averaging over all.
    yield TensorPlan(f"{attention}q_norm.weight", (head_dim,), low=0.5, high=0.4)
    yield TensorPlan(f"{attention}k_norm.weight", (head_dim,), low=0.3, high=0.4)


def _linear_attention(layer: str, text: Mapping[str, Any]) -> Iterator[TensorPlan]:
    hidden = int(text["hidden_size"])
    num_heads, value_dim = int(text["linear_num_value_heads"]), int(text["linear_value_head_dim"])
    values = num_heads * value_dim
    channels = 2 * int(text["linear_num_key_heads"]) * int(text["linear_key_head_dim"]) + values
    attention = f"{layer}linear_attn."
    yield _projection(f"{attention}in_proj_qkv.weight", channels, hidden)
    yield _projection(f"{attention}in_proj_z.weight", values, hidden)
    yield _projection(f"{attention}in_proj_b.weight", num_heads, hidden)
    yield _projection(f"{attention}in_proj_a.weight", num_heads, hidden)
    yield TensorPlan(f"{attention}conv1d.weight", (channels, 1, int(text["linear_conv_kernel_dim"])), low=0.1, high=0.5)
    # Heads that forget within a token beside heads that remember hundreds: a state lost between steps must show.
    yield TensorPlan(f"{attention}A_log", (num_heads,), "log_uniform", 0.02, 4.0, keep_float32=True)
    yield TensorPlan(f"{attention}dt_bias", (num_heads,), "uniform", -3.0, 1.0)
    yield TensorPlan(f"{attention}norm.weight", (value_dim,), low=1.0, high=0.3, keep_float32=True)
    yield _projection(f"{attention}out_proj.weight", hidden, values, gain=2.0)


def _feed_forward(layer: str, text: Mapping[str, Any]) -> Iterator[TensorPlan]:
    hidden = int(text["hidden_size"])
    if not text.get("num_experts"):
        yield from _mlp(f"{layer}mlp.", hidden, int(text["intermediate_size"]))
        return
    num_experts, inner = int(text["num_experts"]), int(text["moe_intermediate_size"])
    mlp = f"{layer}mlp."
    # A gain of two: some experts clearly win, and near-ties, which rounding could flip, stay rare.
    yield _projection(f"{mlp}gate.weight", num_experts, hidden, gain=2.0)
    yield TensorPlan(f"{mlp}experts.gate_up_proj", (num_experts, 2 * inner, hidden), high=1.0 / math.sqrt(hidden))
    yield TensorPlan(f"{mlp}experts.down_proj", (num_experts, hidden, inner), high=2.0 / math.sqrt(inner))
    yield from _mlp(f"{mlp}shared_expert.", hidden, int(text["shared_expert_intermediate_size"]))
    yield _projection(f"{mlp}shared_expert_gate.weight", 1, hidden)


def _mlp(mlp: str, hidden: int, inner: int) -> Iterator[TensorPlan]:
    yield _projection(f"{mlp}gate_proj.weight", inner, hidden)
    yield _projection(f"{mlp}up_proj.weight", inner, hidden)
    yield _projection(f"{mlp}down_proj.weight", hidden, inner, gain=2.0)
