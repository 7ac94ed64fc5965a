"""The operators of the domain `ai.qwonnx`, as the model's modules call them while they are traced.

Each function adds one node to the traced graph and states the shapes of its outputs. It computes nothing: the function
body in `op_bodies.py` defines the operator in standard operators, and a target's lowering may replace it by faster
kernels. B is the batch, T the tokens of this step, H the hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.onnx.ops import symbolic, symbolic_multi_out

DOMAIN = "ai.qwonnx"
VERSION = 1


def embedding(input_ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight` [vocab_size, H] by `input_ids` [B, T] -> [B, T, H]."""
    return _node("Embedding", [input_ids, weight], [*input_ids.shape, weight.shape[1]])


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in_features] times the transpose of `weight` [out_features, in_features] -> [..., out_features]."""
    return _node("Linear", [x, weight], [*x.shape[:-1], weight.shape[0]])


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS normalisation over the last axis, times `weight`: ai.onnx RMSNormalization-23.

    The checkpoint's zero-centred weights are stored with their 1 already added, in float32.
    """
    attributes: _Attributes = {"axis": -1, "epsilon": epsilon}
    return symbolic("RMSNormalization", [x, weight], attributes, dtype=x.dtype, shape=x.shape, version=23)


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of the last axis: ai.onnx Split-18, to which torch's own `split` is not exported."""
    shape = [*x.shape[:-1], x.shape[-1] // 2]
    outputs = symbolic_multi_out(
        "Split", [x], {"axis": -1, "num_outputs": 2}, dtypes=(x.dtype, x.dtype), shapes=(shape, shape), version=18
    )
    return outputs[0], outputs[1]


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """x [B, T, num_heads * D] -> [B, T, num_heads, D]: ai.onnx Reshape, whose zeros copy B and T from x."""
    shape = [*x.shape[:2], num_heads, x.shape[2] // num_heads]
    return symbolic("Reshape", [x, torch.tensor([0, 0, num_heads, -1])], dtype=x.dtype, shape=shape, version=21)


def merge_heads(x: Tensor) -> Tensor:
    """x [B, T, num_heads, D] -> [B, T, num_heads * D]."""
    shape = [*x.shape[:2], x.shape[2] * x.shape[3]]
    return symbolic("Reshape", [x, torch.tensor([0, 0, -1])], dtype=x.dtype, shape=shape, version=21)


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor, num_heads: int, rotary_dim: int) -> Tensor:
    """Rotate the first `rotary_dim` of every head of x [B, T, num_heads * head_dim]: ai.onnx RotaryEmbedding-23.

    cos and sin are [B, T, rotary_dim / 2]; dimension i is paired with i + rotary_dim / 2.
    """
    attributes: _Attributes = {"num_heads": num_heads, "rotary_embedding_dim": rotary_dim, "interleaved": 0}
    return symbolic("RotaryEmbedding", [x, cos, sin], attributes, dtype=x.dtype, shape=x.shape, version=23)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm over groups of `weight.shape[0]` values, times `weight`, then times SiLU(gate).

    x and gate are [B, T, num_heads * head_dim], weight is [head_dim] and plain: nothing is added to it.
    """
    return _node("GatedRMSNorm", [x, gate, weight], x.shape, epsilon=epsilon)


def causal_conv(x: Tensor, weight: Tensor, past_state: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU of the depthwise causal convolution over time.

    x is [B, T, C], weight [C, 1, K], past_state [B, C, K-1]: the K-1 inputs before this step, zeros at the start.
    Yields y [B, T, C] and the present state [B, C, K-1].
    """
    return _two_nodes("CausalConv", [x, weight, past_state], [x.shape, past_state.shape])


def gated_delta_rule(
    qkv: Tensor,
    b: Tensor,
    a: Tensor,
    decay_scale: Tensor,
    dt_bias: Tensor,
    past_state: Tensor,
    *,
    num_key_heads: int,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """The recurrence of Gated DeltaNet (arXiv 2412.06464), token after token, in float32.

    qkv is [B, T, 2 * Hk * Dk + Hv * Dv], q, k and v side by side; b and a are [B, T, Hv]; decay_scale, which is
    -exp(A_log), and dt_bias are [Hv]; past_state is [B, Hv, Dk, Dv]. q and k are L2-normalised per head, with epsilon
    inside the root. Yields [B, T, Hv * Dv] and the present state.
    """
    num_value_heads, value_dim = past_state.shape[1], past_state.shape[3]
    return _two_nodes(
        "GatedDeltaRule",
        [qkv, b, a, decay_scale, dt_bias, past_state],
        [[*qkv.shape[:2], num_value_heads * value_dim], past_state.shape],
        num_key_heads=num_key_heads,
        epsilon=epsilon,
    )


def gated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gate: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    past_lengths: Tensor,
    *,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Causal grouped-query attention over the cache and this step's tokens, times sigmoid(gate).

    query and gate are [B, T, num_heads * D], key and value [B, T, num_kv_heads * D], normed and rotated already.
    past_key and past_value are [B, num_kv_heads, M, D] buffers; row b holds past_lengths[b] tokens. The present ones
    are the same buffers with this step's tokens after the past ones. Yields [B, T, num_heads * D] and both.
    """
    outputs = symbolic_multi_out(
        f"{DOMAIN}::GatedAttention",
        [query, key, value, gate, past_key, past_value, past_lengths],
        {"num_heads": num_heads},
        dtypes=(torch.float32, torch.float32, torch.float32),
        shapes=(query.shape, past_key.shape, past_value.shape),
        version=VERSION,
    )
    return outputs[0], outputs[1], outputs[2]


def routed_experts(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, *, top_k: int) -> Tensor:
    """Route each token to its `top_k` experts and add up their SwiGLU outputs, weighted by the renormalised router.

    x is [B, T, H], router [E, H], gate_up [E, 2 * I, H] with gate and up rows alternating (row 2r is gate r, row
    2r + 1 up r: the order of com.microsoft.QMoE with swiglu_fusion=1), down [E, H, I]. Yields [B, T, H].
    """
    return _node("RoutedExperts", [x, router, gate_up, down], x.shape, top_k=top_k)


_Shape = Sequence[int | torch.SymInt]
_Attributes = dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]]


def _node(op_type: str, inputs: list[Tensor], shape: _Shape, **attributes: int | float) -> Tensor:
    named: _Attributes = {**attributes}
    return symbolic(f"{DOMAIN}::{op_type}", inputs, named, dtype=torch.float32, shape=shape, version=VERSION)


def _two_nodes(
    op_type: str, inputs: list[Tensor], shapes: Sequence[_Shape], **attributes: int | float
) -> tuple[Tensor, Tensor]:
    named: _Attributes = {**attributes}
    outputs = symbolic_multi_out(
        f"{DOMAIN}::{op_type}",
        inputs,
        named,
        dtypes=(torch.float32, torch.float32),
        shapes=shapes,
        version=VERSION,
    )
    return outputs[0], outputs[1]
