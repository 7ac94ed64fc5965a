"""Scales of an int8, fp8 or int4 cache: one for each channel of each layer's keys and values.

    norm and projection of a layer -> spread of each channel -> times the headroom -> largest value -> scale

The kernels take fixed scales, so the size of values must be known in advance. It follows from the weights. A channel's
input is a normed hidden state x (mean square 1) times the input norm's weight, so for an isotropic x its standard
deviation is the length of its row of the projection, weighted by that norm. A key is then normed: only the ratios of
spreads within a head matter, times k_norm's weight, and a component is at most the square root of the head's width
times that weight. Rotation mixes two channels; both get the scale that the length of the pair may need.

Real hidden states are not isotropic, so values are sometimes larger than their computed spread; the headroom covers
this. A value beyond it saturates at the largest code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.modeling.rotary import rope_frequencies

# Standard deviations up to which a value is not clipped. The coarser step costs int8 nothing measurable, and with 16 no
# key of a head of 256 can be clipped. int4 has only sixteen codes, and each standard deviation takes some of them.
_HEADROOM = {"int8": 16.0, "fp8": 16.0, "int4": 4.0}
_LARGEST_CODE = {"int8": 127, "fp8": 448, "int4": 7}
# A scale must not be zero: a channel of zeros gets this share of its layer's largest scale.
_SMALLEST = 1e-6


@dataclass(frozen=True, slots=True)
class CacheScales:
    """Scales of one layer: float32 [num_key_value_heads, head_dim] each, positive."""

    key: Tensor
    value: Tensor


def cache_scales(source: WeightSource, config: ModelConfig, kv: str) -> dict[int, CacheScales]:
    """The scales of every full-attention layer, by its index.

    Args:
        source: reads one projection at a time.
        config: the model.
        kv: "int8", "fp8" or "int4".

    Raises:
        CheckpointError: a weight is missing or cannot be read.
    """
    return {
        layer: _layer_scales(source, config, kv, f"layers.{layer}.")
        for layer, kind in enumerate(config.layer_types)
        if kind == "full_attention"
    }


def _layer_scales(source: WeightSource, config: ModelConfig, kv: str, prefix: str) -> CacheScales:
    norm = source.rows(f"{prefix}input_layernorm.weight", (config.hidden_size,)).read(0, 1)
    key_norm = source.rows(f"{prefix}self_attn.k_norm.weight", (config.head_dim,)).read(0, 1).abs()
    key_spread, value_spread = (_spread(source, config, f"{prefix}self_attn.{name}_proj.weight", norm) for name in "kv")
    relative = key_spread / key_spread.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-30)
    headroom = _HEADROOM[kv]
    largest_key = (relative * headroom).clamp(max=math.sqrt(config.head_dim)) * key_norm
    return CacheScales(key=_scale(_rotated(largest_key, config), kv), value=_scale(value_spread * headroom, kv))


def _spread(source: WeightSource, config: ModelConfig, name: str, norm: Tensor) -> Tensor:
    """Standard deviations [num_key_value_heads, head_dim] of a projection's outputs."""
    num_rows = config.num_key_value_heads * config.head_dim
    rows = source.rows(name, (num_rows, config.hidden_size)).read(0, num_rows)
    return (rows * norm).square().sum(-1).sqrt().view(config.num_key_value_heads, config.head_dim)


def _rotated(largest: Tensor, config: ModelConfig) -> Tensor:
    """Largest values after the rotation, which mixes channel i of the first rotary_dim with i + rotary_dim / 2."""
    _, attention_factor = rope_frequencies(config.rope, config.rotary_dim)
    half = config.rotary_dim // 2
    pair = torch.hypot(largest[:, :half], largest[:, half : 2 * half]) * attention_factor
    return torch.cat([pair, pair, largest[:, 2 * half :]], dim=-1)


def _scale(largest: Tensor, kv: str) -> Tensor:
    ceiling = largest.max().item() or 1.0
    return largest.clamp(min=_SMALLEST * ceiling) / _LARGEST_CODE[kv]
