"""Rotary frequencies and angles against transformers, and YaRN against the numbers of its formula."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as reference
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig

from qwonnx.export.config import RopeParameters
from qwonnx.export.modeling.rotary import RotaryAngles, rope_frequencies


def _rope(rope_type: str, factor: float = 1.0) -> RopeParameters:
    return RopeParameters(
        rope_type=rope_type,
        rope_theta=1e7,
        factor=factor,
        original_max_position_embeddings=262_144,
        attention_factor=None,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=True,
    )


def test_8_yarn_keeps_fast_frequencies_and_divides_slow_ones() -> None:
    inv_freq, attention_factor = rope_frequencies(_rope("yarn", 4.0), 64)
    default, one = rope_frequencies(_rope("default"), 64)
    assert one == 1.0
    torch.testing.assert_close(inv_freq[:15], default[:15], rtol=0, atol=0)
    torch.testing.assert_close(inv_freq[22:], default[22:] / 4, rtol=1e-7, atol=0)
    expected = {15: 4.742398e-4, 18: 7.217387e-5, 21: 8.759770e-6, 31: 4.137043e-8}
    for index, frequency in expected.items():
        assert float(inv_freq[index]) == pytest.approx(frequency, rel=1e-6)
    assert attention_factor == pytest.approx(1.138629436, rel=1e-9)
    assert rope_frequencies(_rope("yarn", 2.0), 64)[1] == pytest.approx(1.069314718, rel=1e-9)


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_8_yarn_is_transformers_yarn(factor: float) -> None:
    config = Qwen3_5MoeTextConfig(
        head_dim=256,
        max_position_embeddings=int(262_144 * factor),
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "factor": factor,
            "original_max_position_embeddings": 262_144,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
    )
    expected, expected_factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    inv_freq, attention_factor = rope_frequencies(_rope("yarn", factor), 64)
    torch.testing.assert_close(inv_freq, expected, rtol=1e-6, atol=0)
    assert attention_factor == pytest.approx(expected_factor)


def test_4_each_frequency_follows_its_own_axis() -> None:
    config = SimpleNamespace(rope=_rope("default"), rotary_dim=64, mrope_section=(11, 11, 10))
    positions = torch.stack([torch.arange(7), torch.arange(7) * 3 + 1, 40 - torch.arange(7)])[:, None, :]
    cos, sin = RotaryAngles(config)(positions)  # type: ignore[arg-type]
    text_config = Qwen3_5MoeTextConfig(
        head_dim=256,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
    )
    rotary = reference.Qwen3_5MoeTextRotaryEmbedding(text_config)
    expected_cos, expected_sin = rotary(torch.zeros(1, 7, 1), positions)
    torch.testing.assert_close(cos, expected_cos[..., :32], rtol=0, atol=1e-6)
    torch.testing.assert_close(sin, expected_sin[..., :32], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("theta", "beta_fast", "beta_slow"), [(1.0000001, 1e12, 1e-11), (1e12, 1e-11, 1e12)])
@pytest.mark.parametrize("factor", [1e-11, 1e6])
def test_the_most_extreme_parameters_that_are_let_in_give_finite_frequencies(
    theta: float, beta_fast: float, beta_slow: float, factor: float
) -> None:
    rope = dataclasses.replace(_rope("yarn", factor), rope_theta=theta, beta_fast=beta_fast, beta_slow=beta_slow)
    for truncate in (True, False):
        inv_freq, attention_factor = rope_frequencies(dataclasses.replace(rope, truncate=truncate), 64)
        assert torch.isfinite(inv_freq).all()
        assert math.isfinite(attention_factor)
