"""Gated full attention, one layer of four."""

from __future__ import annotations

from torch import Tensor, nn

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.layers import Linear, RMSNorm
from qwonnx.export.operators import ops


class GatedAttention(nn.Module):
    """Grouped-query attention with a norm on q and k, partial rotary embedding and a sigmoid gate on the output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.rotary_dim = config.rotary_dim
        hidden = config.hidden_size
        # For each head, q_proj yields the query and the gate side by side.
        self.q_proj = Linear(hidden, self.num_heads * 2 * self.head_dim)
        self.k_proj = Linear(hidden, self.num_kv_heads * self.head_dim)
        self.v_proj = Linear(hidden, self.num_kv_heads * self.head_dim)
        self.o_proj = Linear(self.num_heads * self.head_dim, hidden)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past_key: Tensor, past_value: Tensor, past_lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, gate = ops.halves(ops.split_heads(self.q_proj(x), self.num_heads))
        query = ops.merge_heads(self.q_norm(query))
        key = ops.merge_heads(self.k_norm(ops.split_heads(self.k_proj(x), self.num_kv_heads)))
        attended, present_key, present_value = ops.gated_attention(
            ops.rotary_embedding(query, cos, sin, self.num_heads, self.rotary_dim),
            ops.rotary_embedding(key, cos, sin, self.num_kv_heads, self.rotary_dim),
            self.v_proj(x),
            ops.merge_heads(gate),
            past_key,
            past_value,
            past_lengths,
            num_heads=self.num_heads,
        )
        return attended, present_key, present_value

    def project(self, attended: Tensor) -> Tensor:
        """[B, T, num_heads * head_dim] -> [B, T, hidden_size], token by token."""
        out: Tensor = self.o_proj(attended)
        return out
