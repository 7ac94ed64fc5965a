"""Gated DeltaNet, the linear attention of three layers in four."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.layers import Linear
from qwonnx.export.operators import ops

# The reference normalises q and k with this epsilon, not with rms_norm_eps (transformers `l2norm`).
L2_NORM_EPSILON = 1e-6


class OutputNorm(nn.Module):
    """RMS norm per value head with a plain weight, then the gate: times SiLU(z)."""

    def __init__(self, head_dim: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(head_dim))
        self.epsilon = epsilon

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return ops.gated_rms_norm(x, z, self.weight, self.epsilon)


class DepthwiseConv(nn.Module):
    """The short causal convolution over q, k and v together."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size))

    def forward(self, x: Tensor, past_state: Tensor) -> tuple[Tensor, Tensor]:
        return ops.causal_conv(x, self.weight, past_state)


class GatedDeltaNet(nn.Module):
    """Projections, short convolution, gated delta rule, gated norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_key_heads = config.linear_num_key_heads
        key_width = self.num_key_heads * config.linear_key_head_dim
        num_value_heads = config.linear_num_value_heads
        value_width = num_value_heads * config.linear_value_head_dim
        hidden = config.hidden_size
        self.in_proj_qkv = Linear(hidden, 2 * key_width + value_width)
        self.in_proj_z = Linear(hidden, value_width)
        self.in_proj_b = Linear(hidden, num_value_heads)
        self.in_proj_a = Linear(hidden, num_value_heads)
        self.conv1d = DepthwiseConv(2 * key_width + value_width, config.linear_conv_kernel_dim)
        self.decay_scale = nn.Parameter(torch.empty(num_value_heads))  # -exp(A_log)
        self.dt_bias = nn.Parameter(torch.empty(num_value_heads))
        self.norm = OutputNorm(config.linear_value_head_dim, config.rms_norm_eps)
        self.out_proj = Linear(value_width, hidden)

    def forward(self, x: Tensor, past_conv: Tensor, past_recurrent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv, present_conv = self.conv1d(self.in_proj_qkv(x), past_conv)
        o, present_recurrent = ops.gated_delta_rule(
            qkv,
            self.in_proj_b(x),
            self.in_proj_a(x),
            self.decay_scale,
            self.dt_bias,
            past_recurrent,
            num_key_heads=self.num_key_heads,
            epsilon=L2_NORM_EPSILON,
        )
        return self.norm(o, self.in_proj_z(x)), present_conv, present_recurrent

    def project(self, normed: Tensor) -> Tensor:
        """[B, T, num_value_heads * value_head_dim] -> [B, T, hidden_size], token by token."""
        out: Tensor = self.out_proj(normed)
        return out
