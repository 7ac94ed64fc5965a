"""Rotary frequencies and angles against transformers, and YaRN against the numbers of its formula.

A position of a million multiplies the error of a frequency, so frequencies are compared to the last bit, and angles as
the exported graphs compute them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as reference
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig

from qwonnx.export.checkpoint.config import ModelConfig, RopeParameters, parse_config
from qwonnx.export.lowering.graph_weights import GraphWeights
from qwonnx.export.modeling.cache_spec import state_specs
from qwonnx.export.modeling.rotary import rope_frequencies
from qwonnx.export.modeling.trace import trace_decoder
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.targets.register import TARGETS
from qwonnx.export.targets.target import Activations, LoweringFacts
from tests.checkpoints.config_json import TINY_DENSE, TINY_TEXT, config_json, text_config

LONGEST = 1_010_000
# Factors of the published instructions, and the one that would just reach the longest context.
FACTORS = (1.0, 2.0, 4.0, LONGEST / 262_144)


def _rope_json(factor: float) -> dict[str, Any]:
    """`rope_parameters` of the published checkpoints, or of their instructions for a longer context."""
    rope: dict[str, Any] = {
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
        "rope_type": "default",
        "rope_theta": 10_000_000,
        "partial_rotary_factor": 0.25,
    }
    if factor > 1:
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 262_144}
    return rope


def _config(factor: float) -> ModelConfig:
    """A dense model of one layer, whose head is as wide as the real one."""
    layer = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "head_dim": 256}
    architecture = "Qwen3_5ForCausalLM"
    text = text_config(
        architecture,
        {**TINY_TEXT, **TINY_DENSE},
        {"<|endoftext|>": 0},
        {**layer, "rope_parameters": _rope_json(factor)},
    )
    return parse_config(config_json(architecture, text, {}))


def _reference(factor: float) -> Any:
    config = Qwen3_5MoeTextConfig(
        head_dim=256, max_position_embeddings=262_144, rope_parameters=dict(_rope_json(factor))
    )
    return reference.Qwen3_5MoeTextRotaryEmbedding(config)


def _rope(factor: float) -> RopeParameters:
    return _config(factor).rope


@dataclass(frozen=True, slots=True)
class Angles:
    """cos and sin [T, 32] of one sequence."""

    cos: np.ndarray
    sin: np.ndarray


Target = Callable[[np.ndarray], Angles]


@pytest.fixture(scope="module")
def rotary_part() -> Callable[[float, str], Target]:
    """The part of a target's graph between position_ids and the rotary embedding, in ONNX Runtime."""
    traced: dict[float, ir.Model] = {}

    def build(factor: float, target: str) -> Target:
        if factor not in traced:
            traced[factor] = trace_decoder(_config(factor))
        model = traced[factor].clone()
        weights = GraphWeights.of_traced(model.graph, Recipe.preset("fp32"), {})
        facts = LoweringFacts(_config(factor), state_specs(_config(factor)))
        TARGETS[target].lower(model, weights, Activations.FLOAT32, facts)
        rotations = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
        assert len(rotations) == 2, "the query's and the key's"
        names = {tuple(str(value.name) for value in node.inputs[1:] if value is not None) for node in rotations}
        assert len(names) == 1, "both are rotated by the same angles"
        for value in model.graph.initializers.values():
            if value.const_value is None:  # weights, which the rotary part does not use
                value.const_value = ir.tensor([0.0])
        part = onnx.utils.Extractor(ir.to_proto(model)).extract_model(["position_ids"], list(names.pop()))
        session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])

        def run(position_ids: np.ndarray) -> Angles:
            cos, sin = session.run(None, {"position_ids": position_ids[:, None]})
            return Angles(cos[0], sin[0])

        return run

    return build


def _positions() -> np.ndarray:
    """[T]: the first, the last and some between."""
    between = np.random.default_rng(0).integers(0, LONGEST, 4000)
    return np.concatenate([np.arange(2000), between, np.arange(LONGEST - 2000, LONGEST)])


def _expected(factor: float, position_ids: np.ndarray) -> Angles:
    cos, sin = _reference(factor)(torch.zeros(1), torch.tensor(position_ids[:, None]))
    return Angles(cos[0, :, :32].numpy(), sin[0, :, :32].numpy())


@pytest.mark.parametrize("target", ["cpu", "portable"])
@pytest.mark.parametrize("factor", FACTORS)
def test_8_angles_of_the_graph_equal_transformers_up_to_a_million(
    rotary_part: Callable[[float, str], Target], factor: float, target: str
) -> None:
    rotary, positions = rotary_part(factor, target), _positions()
    for position_ids in (
        np.stack([positions] * 3),  # text
        np.stack([positions, positions[::-1], np.roll(positions, 7)]),
    ):
        actual, expected = rotary(position_ids), _expected(factor, position_ids)
        # One unit in the last place of a cosine, times the attention factor: the angles themselves are equal.
        np.testing.assert_allclose(actual.cos, expected.cos, atol=2.5e-7, rtol=0)
        np.testing.assert_allclose(actual.sin, expected.sin, atol=2.5e-7, rtol=0)


def test_8_float32_angles_are_those_of_the_reference_and_not_exact(
    rotary_part: Callable[[float, str], Target],
) -> None:
    """At a million, float32 rounds an angle by up to 2^-5 rad, in transformers, in training and in our graphs."""
    positions = np.arange(LONGEST - 2000, LONGEST)
    frequencies = rope_frequencies(_rope(4.0), 64)[0].numpy()
    rounded = positions[:, None].astype(np.float32) * frequencies
    exact = positions[:, None] * frequencies.astype(np.float64)
    assert 0.02 < np.abs(rounded - exact).max() <= 2.0**-5
    cos = rotary_part(4.0, "cpu")(np.stack([positions] * 3)).cos / 1.138629436
    np.testing.assert_allclose(cos, np.cos(rounded.astype(np.float64)), atol=2e-7, rtol=0)
    assert np.abs(cos - np.cos(exact)).max() > 0.01


def test_8_yarn_keeps_fast_frequencies_and_divides_slow_ones() -> None:
    inv_freq, attention_factor = rope_frequencies(_rope(4.0), 64)
    default, one = rope_frequencies(_rope(1.0), 64)
    assert one == 1.0
    torch.testing.assert_close(inv_freq[:15], default[:15], rtol=0, atol=0)
    torch.testing.assert_close(inv_freq[22:], default[22:] / 4, rtol=1e-7, atol=0)
    expected = {15: 4.742398e-4, 18: 7.217387e-5, 21: 8.759770e-6, 31: 4.137043e-8}
    before = {15: 5.232991e-4, 18: 1.154782e-4, 21: 2.548297e-5, 31: 1.654817e-7}
    for index in expected:
        assert float(inv_freq[index]) == pytest.approx(expected[index], rel=1e-6)
        assert float(default[index]) == pytest.approx(before[index], rel=1e-6)
    assert attention_factor == pytest.approx(1.138629436, rel=1e-9)
    assert rope_frequencies(_rope(2.0), 64)[1] == pytest.approx(1.069314718, rel=1e-9)


@pytest.mark.parametrize("factor", FACTORS)
def test_8_frequencies_are_transformers_to_the_last_bit(factor: float) -> None:
    expected = _reference(factor)
    inv_freq, attention_factor = rope_frequencies(_rope(factor), 64)
    torch.testing.assert_close(inv_freq, expected.inv_freq, rtol=0, atol=0)
    assert attention_factor == expected.attention_scaling


def test_8_the_extended_context_is_factor_times_the_original() -> None:
    assert _config(4.0).max_position_embeddings == 1_048_576 >= LONGEST
    assert _config(2.0).max_position_embeddings == 524_288
    assert _config(1.0).max_position_embeddings == 262_144


@pytest.mark.parametrize(("theta", "beta_fast", "beta_slow"), [(1.0000001, 1e12, 1e-11), (1e12, 1e-11, 1e12)])
@pytest.mark.parametrize("factor", [1e-11, 1e6])
def test_the_most_extreme_parameters_that_are_let_in_give_finite_frequencies(
    theta: float, beta_fast: float, beta_slow: float, factor: float
) -> None:
    rope = dataclasses.replace(_rope(4.0), factor=factor, rope_theta=theta, beta_fast=beta_fast, beta_slow=beta_slow)
    for truncate in (True, False):
        inv_freq, attention_factor = rope_frequencies(dataclasses.replace(rope, truncate=truncate), 64)
        assert torch.isfinite(inv_freq).all()
        assert math.isfinite(attention_factor)
