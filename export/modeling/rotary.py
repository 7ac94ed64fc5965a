"""The angles of interleaved multimodal rotary embedding (mRoPE), computed at run time for the positions in use."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qwonnx.export.checkpoint.config import ModelConfig, RopeParameters


class RotaryAngles(nn.Module):
    """position_ids [3, B, T] (time, height, width) -> cos and sin, each [B, T, rotary_dim / 2], in float32.

    Every frequency follows one axis (config key `mrope_section`): height takes the indices 1, 4, 7, ... and width
    2, 5, 8, ..., each up to three times its section; time keeps the rest. For text the three positions are equal.
    """

    inv_freq: Tensor
    axis_of_frequency: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inv_freq, self.attention_factor = rope_frequencies(config.rope, config.rotary_dim)
        self.register_buffer("inv_freq", inv_freq)
        axes = torch.zeros(3, len(inv_freq))
        axes[0] = 1.0
        for axis in (1, 2):
            indices = torch.arange(axis, 3 * config.mrope_section[axis], 3)
            axes[:, indices] = 0.0
            axes[axis, indices] = 1.0
        self.register_buffer("axis_of_frequency", axes[:, None, None, :])  # [3, 1, 1, rotary_dim / 2], one-hot

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids.to(torch.float32)[..., None] * self.inv_freq
        angles = (angles * self.axis_of_frequency).sum(0)
        return torch.cos(angles) * self.attention_factor, torch.sin(angles) * self.attention_factor


def rope_frequencies(rope: RopeParameters, rotary_dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies [rotary_dim / 2] in float32, and the factor on both cos and sin.

    YaRN (arXiv 2309.00071) divides the slow frequencies by `factor` and leaves the fast ones, with a linear ramp over
    the indices that turn between beta_fast and beta_slow times within the original context. Its attention factor goes
    into cos and sin, so it scales only the rotated dimensions.

    The order of operations is transformers', to the last bit: positions up to a million multiply a frequency and its
    rounding error.
    """
    half = rotary_dim // 2
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).to(torch.float32) / rotary_dim
    wavelengths = rope.rope_theta**exponents  # in positions per radian
    if rope.rope_type == "default":
        return 1.0 / wavelengths, 1.0

    def index_turning(times: float) -> float:
        """The (fractional) frequency index that turns `times` times over the original context."""
        turns = rope.original_max_position_embeddings / (times * 2 * math.pi)
        return rotary_dim * math.log(turns) / (2 * math.log(rope.rope_theta))

    low, high = index_turning(rope.beta_fast), index_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = float(max(low, 0)), float(min(high, rotary_dim - 1))  # integers may exceed torch's range
    # A ramp of width 0 would divide by zero; one of 0.001 is a step.
    width = high - low if high != low else 0.001
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / width).clamp(0, 1)
    attention_factor = rope.attention_factor
    if attention_factor is None:
        attention_factor = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
    kept = 1 - ramp
    return 1.0 / (rope.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept, attention_factor
