"""The function bodies of our operators against transformers' own functions, in onnx.reference and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as reference
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig

from tests.export.operators.single_op import ENGINES, run

pytestmark = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def _normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def _close(actual: np.ndarray, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(actual, expected.numpy(), rtol=tolerance, atol=tolerance)


def test_linear_multiplies_by_the_transpose(engine: str, rng: np.random.Generator) -> None:
    x, weight = _normal(rng, 2, 3, 8), _normal(rng, 5, 8)
    (y,) = run(engine, "Linear", {"x": x, "weight": weight})
    _close(y, F.linear(torch.tensor(x), torch.tensor(weight)))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_dequantize_unpacks_low_bits_first_and_centres_them(engine: str, bits: int, rng: np.random.Generator) -> None:
    levels = 2**bits
    values = rng.integers(0, levels, (3, 5, 32))
    scales = _normal(rng, 3, 5, 2)
    (weight,) = run(engine, "Dequantize", {"codes": _pack(values, bits), "scales": scales}, bits=bits)
    np.testing.assert_array_equal(weight, (values - levels // 2).astype(np.float32) * scales.repeat(16, axis=-1))


@pytest.mark.parametrize("bits", [4, 8])
def test_affine_dequantize_subtracts_a_zero_point_a_block(engine: str, bits: int, rng: np.random.Generator) -> None:
    values, zero_points = rng.integers(0, 2**bits, (3, 5, 48)), rng.integers(0, 2**bits, (3, 5, 3))
    scales = _normal(rng, 3, 5, 3)
    # Three zero points of 4 bits take two bytes, of which the last half means nothing.
    inputs = {
        "codes": _pack(values, bits),
        "scales": scales,
        "zero_points": _pack(np.concatenate([zero_points, np.full((3, 5, 1), 11)], -1), bits)[..., : -(-3 * bits // 8)],
    }
    (weight,) = run(engine, "DequantizeAffine", inputs, bits=bits)
    expected = (values - zero_points.repeat(16, axis=-1)).astype(np.float32) * scales.repeat(16, axis=-1)
    np.testing.assert_array_equal(weight, expected)


def test_affine_operators_dequantize_what_they_take(engine: str, rng: np.random.Generator) -> None:
    inputs = {
        "codes": rng.integers(0, 256, (11, 16), dtype=np.uint8),
        "scales": _normal(rng, 11, 2),
        "zero_points": rng.integers(0, 256, (11, 1), dtype=np.uint8),
    }
    (table,) = run(engine, "DequantizeAffine", inputs, bits=4)
    ids, x = np.array([[3, 3, 10], [0, 1, 2]]), _normal(rng, 2, 3, 32)
    (rows,) = run(engine, "AffineEmbedding", {"input_ids": ids, **inputs}, bits=4)
    np.testing.assert_array_equal(rows, table[ids])
    (y,) = run(engine, "AffineLinear", {"x": x, **inputs}, bits=4)
    _close(y, F.linear(torch.tensor(x), torch.tensor(table)))


def _pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Low bits first."""
    per_byte = 8 // bits
    packed: np.ndarray = np.sum([values[..., i::per_byte] << (bits * i) for i in range(per_byte)], axis=0)
    return packed.astype(np.uint8)


def test_quantized_embedding_dequantizes_the_rows_it_takes(engine: str, rng: np.random.Generator) -> None:
    codes = rng.integers(0, 256, (11, 16), dtype=np.uint8)
    scales = _normal(rng, 11, 2)
    ids = np.array([[3, 3, 10], [0, 1, 2]])
    inputs = {"input_ids": ids, "codes": codes, "scales": scales}
    (rows,) = run(engine, "QuantizedEmbedding", inputs, bits=4)
    (table,) = run(engine, "Dequantize", {"codes": codes, "scales": scales}, bits=4)
    np.testing.assert_array_equal(rows, table[ids])


def test_gated_norm_uses_the_plain_weight_then_the_gate(engine: str, rng: np.random.Generator) -> None:
    x, gate, weight = _normal(rng, 2, 3, 4 * 8), _normal(rng, 2, 3, 4 * 8), _normal(rng, 8)
    (y,) = run(engine, "GatedRMSNorm", {"x": x, "gate": gate, "weight": weight}, epsilon=1e-6)
    norm = reference.Qwen3_5MoeRMSNormGated(8, eps=1e-6)
    norm.weight.data = torch.tensor(weight)
    expected = norm(torch.tensor(x).reshape(-1, 8), torch.tensor(gate).reshape(-1, 8))
    _close(y, expected.detach().reshape(2, 3, 32))


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 9])
def test_causal_conv_continues_from_its_state(engine: str, num_tokens: int, rng: np.random.Generator) -> None:
    x, weight, past = _normal(rng, 2, num_tokens, 6), _normal(rng, 6, 1, 4), _normal(rng, 2, 6, 3)
    y, present = run(engine, "CausalConv", {"x": x, "weight": weight, "past_state": past}, 2)
    window = torch.cat([torch.tensor(past), torch.tensor(x).transpose(1, 2)], dim=2)
    _close(y, F.silu(F.conv1d(window, torch.tensor(weight), groups=6)).transpose(1, 2))
    np.testing.assert_array_equal(present, window[:, :, -3:].numpy())


@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("zero_rows", [False, True])
def test_delta_rule_is_the_reference_recurrence(
    engine: str, num_tokens: int, zero_rows: bool, rng: np.random.Generator
) -> None:
    key_heads, value_heads, key_dim, value_dim = 2, 6, 4, 8
    qkv = _normal(rng, 2, num_tokens, 2 * key_heads * key_dim + value_heads * value_dim)
    if zero_rows:
        qkv[:, -1, :] = 0.0  # an all-zero q or k stays finite: its norm has an epsilon inside the root
    a, b = _normal(rng, 2, num_tokens, value_heads), _normal(rng, 2, num_tokens, value_heads)
    a_log, dt_bias = _normal(rng, value_heads), _normal(rng, value_heads)
    past = _normal(rng, 2, value_heads, key_dim, value_dim)
    inputs = {"qkv": qkv, "b": b, "a": a, "decay_scale": -np.exp(a_log), "dt_bias": dt_bias, "past_state": past}
    o, present = run(engine, "GatedDeltaRule", inputs, 2, num_key_heads=key_heads, epsilon=1e-6)

    width = key_heads * key_dim
    q, k, v = torch.split_with_sizes(torch.tensor(qkv), [width, width, value_heads * value_dim], dim=-1)
    q, k = (part.reshape(2, num_tokens, key_heads, key_dim).repeat_interleave(3, dim=2) for part in (q, k))
    g = -torch.tensor(a_log).exp() * F.softplus(torch.tensor(a) + torch.tensor(dt_bias))
    expected, final = reference.torch_recurrent_gated_delta_rule(
        q,
        k,
        v.reshape(2, num_tokens, value_heads, value_dim),
        g=g,
        beta=torch.tensor(b).sigmoid(),
        initial_state=torch.tensor(past),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    _close(o, expected.flatten(2))
    assert final is not None
    _close(present, final)
    assert np.isfinite(o).all()


def test_attention_sees_the_cache_and_what_came_before_in_this_step(engine: str, rng: np.random.Generator) -> None:
    heads, kv_heads, dim, capacity, num_tokens = 4, 2, 8, 12, 3
    lengths = np.array([5, 0])
    query, gate = _normal(rng, 2, num_tokens, heads * dim), _normal(rng, 2, num_tokens, heads * dim)
    key, value = _normal(rng, 2, num_tokens, kv_heads * dim), _normal(rng, 2, num_tokens, kv_heads * dim)
    past_key, past_value = (_normal(rng, 2, kv_heads, capacity, dim) for _ in range(2))
    inputs = {
        "query": query,
        "key": key,
        "value": value,
        "gate": gate,
        "past_key": past_key,
        "past_value": past_value,
        "past_lengths": lengths,
    }
    o, present_key, present_value = run(engine, "GatedAttention", inputs, 3, num_heads=heads)
    for row, length in enumerate(lengths):
        total = length + num_tokens
        keys = np.concatenate([past_key[row, :, :length], key[row].reshape(-1, kv_heads, dim).swapaxes(0, 1)], axis=1)
        values = np.concatenate(
            [past_value[row, :, :length], value[row].reshape(-1, kv_heads, dim).swapaxes(0, 1)], axis=1
        )
        np.testing.assert_array_equal(present_key[row, :, :total], keys)
        np.testing.assert_array_equal(present_value[row, :, :total], values)
        np.testing.assert_array_equal(present_key[row, :, total:], past_key[row, :, total:])
        mask = torch.ones(num_tokens, total).tril(int(length)).bool()
        attended = F.scaled_dot_product_attention(
            torch.tensor(query[row]).reshape(num_tokens, heads, dim).transpose(0, 1),
            torch.tensor(keys).repeat_interleave(heads // kv_heads, dim=0),
            torch.tensor(values).repeat_interleave(heads // kv_heads, dim=0),
            attn_mask=mask,
        )
        _close(o[row], attended.transpose(0, 1).flatten(1) * torch.tensor(gate[row]).sigmoid())


def _experts(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], reference.Qwen3_5MoeSparseMoeBlock]:
    """Inputs of RoutedExperts, and transformers' block with the same weights and a shared expert that adds nothing."""
    config = Qwen3_5MoeTextConfig(
        hidden_size=16,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=8,
        experts_implementation="eager",
    )
    block = reference.Qwen3_5MoeSparseMoeBlock(config)
    router, gate_up, down = _normal(rng, 8, 16), _normal(rng, 8, 64, 16, scale=0.3), _normal(rng, 8, 16, 32, scale=0.3)
    block.gate.weight.data = torch.tensor(router)
    block.experts.gate_up_proj.data = torch.tensor(gate_up)
    block.experts.down_proj.data = torch.tensor(down)
    block.shared_expert.down_proj.weight.data.zero_()
    interleaved = np.stack([gate_up[:, :32], gate_up[:, 32:]], axis=2).reshape(8, 64, 16)
    return {"router": router, "gate_up": interleaved, "down": down}, block


def test_routed_experts_are_the_reference_block(engine: str, rng: np.random.Generator) -> None:
    weights, block = _experts(rng)
    x = _normal(rng, 2, 5, 16)
    (y,) = run(engine, "RoutedExperts", {"x": x, **weights}, top_k=3)
    with torch.no_grad():
        _close(y, block(torch.tensor(x)), 1e-4)


def test_no_tokens_are_routed_to_no_experts(engine: str, rng: np.random.Generator) -> None:
    weights, _ = _experts(rng)
    (y,) = run(engine, "RoutedExperts", {"x": _normal(rng, 1, 0, 16), **weights}, top_k=3)
    assert y.shape == (1, 0, 16)


def test_equal_router_scores_still_pick_top_k_experts_and_weights_that_sum_to_one(
    engine: str, rng: np.random.Generator
) -> None:
    weights, _ = _experts(rng)
    weights["router"][:] = weights["router"][:1]  # all experts tie for every token
    weights["gate_up"][:] = weights["gate_up"][:1]  # and all compute the same, so any choice gives one answer
    weights["down"][:] = weights["down"][:1]
    x = _normal(rng, 1, 4, 16)
    (y,) = run(engine, "RoutedExperts", {"x": x, **weights}, top_k=3)
    gate_up = x @ weights["gate_up"][0].T
    gate, up = torch.tensor(gate_up[..., 0::2]), torch.tensor(gate_up[..., 1::2])
    _close(y, (F.silu(gate) * up) @ torch.tensor(weights["down"][0].T), 1e-4)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("gate_up_bits", "down_bits"), [(4, 4), (8, 8), (4, 8)])
def test_quantized_experts_mean_the_experts_on_dequantized_weights(
    engine: str, gate_up_bits: int, down_bits: int, affine: bool, rng: np.random.Generator
) -> None:
    weights, _ = _experts(rng)
    x = _normal(rng, 1, 3, 16)
    codes: dict[str, np.ndarray] = {}
    floats = {"router": weights["router"]}
    for name, bits in (("gate_up", gate_up_bits), ("down", down_bits)):
        *rows, columns = weights[name].shape
        stored = {
            "codes": rng.integers(0, 256, (*rows, columns * bits // 8), dtype=np.uint8),
            "scales": _normal(rng, *rows, columns // 16, scale=2.0 ** (1 - bits)),
        }
        if affine:
            num_bytes = -(-columns // 16 * bits // 8)
            stored["zero_points"] = rng.integers(0, 256, (*rows, num_bytes), dtype=np.uint8)
        codes |= {f"{name}_{part}": values for part, values in stored.items()}
        (floats[name],) = run(engine, "DequantizeAffine" if affine else "Dequantize", stored, bits=bits)
    inputs = {"x": x, "router": weights["router"], **codes}
    op_type = "AffineRoutedExperts" if affine else "QuantizedRoutedExperts"
    (y,) = run(engine, op_type, inputs, top_k=3, gate_up_bits=gate_up_bits, down_bits=down_bits)
    (expected,) = run(engine, "RoutedExperts", {"x": x, **floats}, top_k=3)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
