"""Attention over a float8 cache: the function body is float attention over numbers that float8 rounded."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.export.operators.single_op import run

HEADS, KV_HEADS, DIM, CAPACITY = 4, 2, 16, 40
FLOAT8 = ml_dtypes.float8_e4m3fn


def rounded(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """x over scale as float8, out of range the largest number."""
    return np.clip(x * (np.float32(1) / scale), -448, 448).astype(FLOAT8)


@pytest.mark.parametrize(("lengths", "num_tokens"), [([0], 7), ([30, 3], 1), ([5, 5], 4)])
def test_the_body_is_float_attention_over_rounded_numbers(lengths: list[int], num_tokens: int) -> None:
    random = np.random.default_rng(num_tokens)
    batch = len(lengths)
    scales = [random.uniform(0.002, 0.02, (1, KV_HEADS, 1, DIM)).astype(np.float32) for _ in range(2)]
    query, gate = (random.standard_normal((batch, num_tokens, HEADS * DIM)).astype(np.float32) for _ in range(2))
    new = [random.standard_normal((batch, num_tokens, KV_HEADS * DIM)).astype(np.float32) * 3 for _ in range(2)]
    past = [
        rounded(random.standard_normal((batch, KV_HEADS, CAPACITY, DIM)).astype(np.float32), scale) for scale in scales
    ]
    inputs = {"query": query, "key": new[0], "value": new[1], "gate": gate, "past_key": past[0], "past_value": past[1]}
    inputs |= {"past_lengths": np.array(lengths)}
    stored = []
    for step, buffer, scale in zip(new, past, scales, strict=True):
        heads = step.reshape(batch, num_tokens, KV_HEADS, DIM).swapaxes(1, 2)
        whole = buffer.copy()
        for row, length in enumerate(lengths):
            whole[row, :, length : length + num_tokens] = rounded(heads, scale)[row]
        stored.append(whole)
    assert any((np.abs(each.astype(np.float32)) == 448).any() for each in stored), "some are out of range"

    scaled = {"key_scale": scales[0], "value_scale": scales[1]}
    types = (ir.DataType.FLOAT, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FN)
    attended, *buffers = run("reference", "GatedAttentionFloat8", inputs | scaled, 3, types, num_heads=HEADS)
    for ours, expected in zip(buffers, stored, strict=True):
        np.testing.assert_array_equal(ours.astype(np.float32), expected.astype(np.float32))
    floats = [each.astype(np.float32) * scale for each, scale in zip(stored, scales, strict=True)]
    following = [
        np.stack([each[row, :, length : length + num_tokens] for row, length in enumerate(lengths)])
        .swapaxes(1, 2)
        .reshape(batch, num_tokens, -1)
        for each in floats
    ]
    exact = inputs | {"key": following[0], "value": following[1], "past_key": floats[0], "past_value": floats[1]}
    (expected, *_) = run("onnxruntime", "GatedAttention", exact, 3, num_heads=HEADS)
    np.testing.assert_allclose(attended, expected, rtol=0, atol=1e-5)
