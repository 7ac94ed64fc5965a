"""Blocks of the text model for training: packed sequences, no cache; names are those of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.miniature.delta_rule import gated_delta_rule
from infra.miniature.experts import routed_experts
from infra.miniature.fused import rms_norm


@dataclass(frozen=True, slots=True)
class Layout:
    """The division of a batch's rows into sequences, in the forms that the layers need.

    Attributes:
        starts: bool [B, T], a sequence's first token.
        visible: bool [B, 1, T, T], the keys of a query: its own sequence, up to itself.
        same: for distances 1 to 3, float [B, T, 1]: 1 if the token so far back is in the same sequence.
        cos, sin: [B, 1, T, rotary_dim].
        real: bool [B * T], false for padding.
    """

    starts: Tensor
    visible: Tensor
    same: tuple[Tensor, ...]
    cos: Tensor
    sin: Tensor
    real: Tensor


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, 1.0 + self.weight)


class GatedNorm(nn.Module):
    """x / rms(x) * weight * silu(gate); the weight is not centred on zero."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return rms_norm(x, self.weight) * F.silu(gate)


class Convolution(nn.Module):
    """The causal depthwise convolution over a sequence's own tokens."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, width))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        taps = self.weight[:, 0].t()  # [width, channels], the last for the token itself
        result = x * taps[-1]
        for distance in range(1, len(taps)):
            earlier = F.pad(x[:, :-distance], (0, 0, distance, 0)) * layout.same[distance - 1]
            result = torch.addcmul(result, earlier, taps[-1 - distance])
        return F.silu(result)


class GatedDeltaNet(nn.Module):
    """Linear attention."""

    def __init__(self, text: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = text["hidden_size"]
        self.key_dim, self.value_dim = text["linear_key_head_dim"], text["linear_value_head_dim"]
        self.key_heads, self.value_heads = text["linear_num_key_heads"], text["linear_num_value_heads"]
        keys, values = self.key_heads * self.key_dim, self.value_heads * self.value_dim
        self.in_proj_qkv = nn.Linear(hidden, 2 * keys + values, bias=False)
        self.in_proj_z = nn.Linear(hidden, values, bias=False)
        self.in_proj_b = nn.Linear(hidden, self.value_heads, bias=False)
        self.in_proj_a = nn.Linear(hidden, self.value_heads, bias=False)
        self.conv1d = Convolution(2 * keys + values, text["linear_conv_kernel_dim"])
        self.A_log = nn.Parameter(torch.empty(self.value_heads))
        self.dt_bias = nn.Parameter(torch.empty(self.value_heads))
        self.norm = GatedNorm(self.value_dim)
        self.out_proj = nn.Linear(values, hidden, bias=False)
        self._parts = [keys, keys, values]

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        batch, length, _ = x.shape
        mixed = self.conv1d(self.in_proj_qkv(x), layout)
        query, key, value = mixed.float().split_with_sizes(self._parts, -1)
        query = _unit(query.view(batch, length, self.key_heads, -1)) * self.key_dim**-0.5
        key = _unit(key.view(batch, length, self.key_heads, -1))
        repeats = self.value_heads // self.key_heads
        decay = -self.A_log.exp() * F.softplus(self.in_proj_a(x).float() + self.dt_bias)
        read = gated_delta_rule(
            query.repeat_interleave(repeats, 2),
            key.repeat_interleave(repeats, 2),
            value.view(batch, length, self.value_heads, -1),
            decay,
            self.in_proj_b(x).float().sigmoid(),
            layout.starts,
        )
        gate = self.in_proj_z(x).view_as(read)
        result: Tensor = self.out_proj(self.norm(read, gate).reshape(batch, length, -1).to(x.dtype))
        return result


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


class Attention(nn.Module):
    """Gated full attention with norms of queries and keys and rotation of a quarter of each head."""

    def __init__(self, text: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, self.head_dim = text["hidden_size"], text["head_dim"]
        heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
        self.q_proj = nn.Linear(hidden, 2 * heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, hidden, bias=False)
        self.q_norm = RMSNorm(self.head_dim)
        self.k_norm = RMSNorm(self.head_dim)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        batch, length, _ = x.shape
        # Queries and gates alternate by head.
        query, gate = self.q_proj(x).view(batch, length, -1, 2 * self.head_dim).chunk(2, -1)
        key = self.k_proj(x).view(batch, length, -1, self.head_dim)
        value = self.v_proj(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        query = _rotated(self.q_norm(query).transpose(1, 2), layout)
        key = _rotated(self.k_norm(key).transpose(1, 2), layout)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=layout.visible, enable_gqa=True)
        gated = read.transpose(1, 2).reshape(batch, length, -1) * gate.reshape(batch, length, -1).sigmoid()
        result: Tensor = self.o_proj(gated)
        return result


def _rotated(x: Tensor, layout: Layout) -> Tensor:
    """x [B, heads, T, d] with its first rotary_dim dimensions rotated in pairs (i, i + rotary_dim / 2)."""
    size = layout.cos.shape[-1]
    turning, still = x[..., :size], x[..., size:]
    first, second = turning.chunk(2, -1)
    turned = turning * layout.cos + torch.cat([-second, first], -1) * layout.sin
    return torch.cat([turned.to(x.dtype), still], -1)


@dataclass(frozen=True, slots=True)
class Routing:
    """A router's outputs, for its losses: `probabilities` and `logits` float32 [N, E], `index` [N, K]."""

    probabilities: Tensor
    index: Tensor
    logits: Tensor


class Experts(nn.Module):
    """Weights of the routed experts of a layer."""

    def __init__(self, num_experts: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(num_experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(num_experts, hidden, inner))


class SharedExpert(nn.Module):
    """The expert that every token uses."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class FeedForward(nn.Module):
    """A router, its experts and the shared one."""

    def __init__(self, text: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = text["hidden_size"]
        self.num_chosen = text["num_experts_per_tok"]
        self.gate = nn.Linear(hidden, text["num_experts"], bias=False)
        self.experts = Experts(text["num_experts"], hidden, text["moe_intermediate_size"])
        self.shared_expert = SharedExpert(hidden, text["shared_expert_intermediate_size"])
        self.shared_expert_gate = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: Tensor, routings: list[Routing]) -> Tensor:
        flat = x.view(-1, x.shape[-1])
        logits = self.gate(flat).float()
        probabilities = logits.softmax(-1)
        top, index = probabilities.topk(self.num_chosen, -1)
        routings.append(Routing(probabilities, index, logits))
        weights = (top / top.sum(-1, keepdim=True)).to(x.dtype)
        routed = routed_experts(flat, self.experts.gate_up_proj, self.experts.down_proj, weights, index)
        shared: Tensor = self.shared_expert_gate(flat).sigmoid() * self.shared_expert(flat)
        return (routed + shared).view_as(x)


class DecoderLayer(nn.Module):
    """A mixer and a feed-forward block, each after a norm and around a residual."""

    def __init__(self, text: Mapping[str, Any], layer_type: str) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(text["hidden_size"])
        if layer_type == "linear_attention":
            self.linear_attn = GatedDeltaNet(text)
        else:
            self.self_attn = Attention(text)
        self.post_attention_layernorm = RMSNorm(text["hidden_size"])
        self.mlp = FeedForward(text)
        self._is_linear = layer_type == "linear_attention"

    def forward(self, x: Tensor, layout: Layout, routings: list[Routing]) -> Tensor:
        mixer = self.linear_attn if self._is_linear else self.self_attn
        x = x + mixer(self.input_layernorm(x), layout)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x), routings)
        return result
