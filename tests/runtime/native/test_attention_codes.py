"""Attention over int8 and int4 caches, whose products round queries and weights to 16 bits, beside exact arithmetic.

The bound. A query times the scales of keys is rounded to steps of most / 32767, most its largest magnitude, so each
number is off by at most most / 65534, and the score of a key by at most

    delta = most / 65534 * sum of the key's |codes| / sqrt(head_dim).

Softmax over scores that are off by delta has weights that are off by a factor of at most exp(2 delta). Weights of 48
positions are then rounded to steps of 1 / 32767 of the largest of these positions: they are off by 48 / 65534 of the
sum of all, at most, and so is their sum. Both move the output by that share of the largest value, twice. Instruction
sets without these products, and widths that they do not take, compute with floats and are closer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.attention import Arrays, Shape, attention_session, random_step

ROUNDS = int(os.environ.get("QWONNX_TEST_NATIVE_ROUNDS", "1"))
QUANTIZED = ("int8", "int4")
BLOCK = 48  # positions

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Exact:
    """What a step attends to, and how far rounding may move it: [B, T, heads, D] and [B, T, heads, 1]."""

    attended: Doubles
    bound: Doubles


def decoded(codes: NDArray[Any]) -> Doubles:
    """The codes of a cache as numbers, without scales."""
    if codes.dtype == np.int8:
        return codes.astype(np.float64)
    pairs = np.stack([codes & 15, codes >> 4], axis=-1).astype(np.float64) - 8
    return pairs.reshape(*codes.shape[:-1], -1)


def exact(shape: Shape, arrays: Arrays, keys: NDArray[Any], values: NDArray[Any]) -> Exact:
    """Attention over caches that have the step's positions, in float64."""
    group, dim = shape.num_heads // shape.num_kv_heads, shape.head_dim
    size = (len(shape.lengths), shape.num_tokens, shape.num_heads, dim)
    attended, bound = np.zeros(size), np.zeros((*size[:3], 1))
    gates = 1 / (1 + np.exp(-arrays["gate"].astype(np.float64).reshape(size)))
    queries = arrays["query"].astype(np.float64).reshape(size)
    for row, token, head in np.ndindex(*size[:3]):
        kv_head, end = head // group, shape.lengths[row] + token + 1
        key = decoded(keys[row, kv_head, :end])
        value = decoded(values[row, kv_head, :end]) * arrays["value_scale"][0, kv_head, 0]
        query = queries[row, token, head] * arrays["key_scale"][0, kv_head, 0] / np.sqrt(dim)
        scores = key @ query
        weights = np.exp(scores - scores.max())
        attended[row, token, head] = weights / weights.sum() @ value * gates[row, token, head]
        delta = np.abs(query).max() / 65534 * np.abs(key).sum(axis=1).max()
        share = 2 * (np.expm1(2 * delta) + BLOCK / 65534)
        bound[row, token, head] = share * np.abs(value).max() + 1e-5 * np.abs(value).max() * (1 + np.abs(scores).max())
    return Exact(attended, bound)


def assert_within_bound(kv: str, shape: Shape, arrays: Arrays, library: NativeLibrary) -> None:
    actual, keys, values = attention_session(kv, shape.num_heads, library).run(None, arrays)
    expected = exact(shape, arrays, keys, values)
    assert np.isfinite(actual).all()
    assert (np.abs(actual.reshape(expected.attended.shape) - expected.attended) <= expected.bound).all(), shape


@pytest.mark.parametrize("kv", QUANTIZED)
def test_outputs_are_within_the_bound_of_rounding(library: NativeLibrary, instructions: str, kv: str) -> None:
    random = np.random.default_rng([ROUNDS, len(kv)])
    for seed in range(8 * ROUNDS):
        num_kv_heads, group = int(random.integers(1, 3)), int(random.integers(1, 17))
        head_dim = int(random.choice([16, 32, 48, 64, 128, 256, 512, 528, 544]))
        lengths = [int(length) for length in random.integers(0, 200, int(random.integers(1, 3)))]
        shape = Shape(lengths, int(random.integers(1, 6)), num_kv_heads * group, num_kv_heads, head_dim)
        assert_within_bound(kv, shape, random_step(kv, shape, seed), library)


@pytest.mark.parametrize("kv", QUANTIZED)
@pytest.mark.parametrize("head_dim", [64, 512])
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF, 0x0F])
def test_extreme_codes_do_not_overflow(
    library: NativeLibrary, instructions: str, kv: str, head_dim: int, byte: int
) -> None:
    """The largest sums: every product of a block has the same sign."""
    shape = Shape([150], 1, 5, 1, head_dim)
    arrays = random_step(kv, shape)
    for name in ("past_key", "past_value"):
        arrays[name] = np.full_like(arrays[name].view(np.uint8), byte).view(arrays[name].dtype)
    arrays["query"] = np.where(arrays["query"] > 0, 1, 0.999).astype(np.float32)
    arrays["key_scale"][:] = 0.01
    assert_within_bound(kv, shape, arrays, library)
    arrays["query"] *= -1
    assert_within_bound(kv, shape, arrays, library)


@pytest.mark.parametrize("kv", QUANTIZED)
@pytest.mark.parametrize("scale", [0, 1e-38, 1e-20, 1e-3, 30])
def test_queries_of_any_size_are_within_the_bound(
    library: NativeLibrary, instructions: str, kv: str, scale: float
) -> None:
    """Large ones leave weights that underflow, beside a largest one in another block."""
    shape = Shape([300, 3], 2, 8, 2, 64)
    arrays = random_step(kv, shape)
    arrays["query"] *= np.float32(scale)
    assert_within_bound(kv, shape, arrays, library)


@pytest.mark.parametrize("kv", QUANTIZED)
def test_one_huge_number_of_a_query_is_within_the_bound(library: NativeLibrary, instructions: str, kv: str) -> None:
    shape = Shape([200], 1, 8, 1, 128)
    arrays = random_step(kv, shape)
    arrays["query"][..., 5::128] = 300
    arrays["key_scale"][..., 5] = 1e-4
    assert_within_bound(kv, shape, arrays, library)
    arrays["key_scale"][..., 5] = 0.1
    assert_within_bound(kv, shape, arrays, library)


@pytest.mark.parametrize("kv", QUANTIZED)
def test_rounding_loses_little_beside_what_the_cache_loses(library: NativeLibrary, instructions: str, kv: str) -> None:
    """The same keys and values as floats show what their codes lose; products may add a sixteenth of that."""
    shape = Shape([2000], 1, 16, 2, 128, spare=0)
    arrays = random_step(kv, shape)
    arrays["query"] *= 2
    random = np.random.default_rng(3)
    floats = dict(arrays)
    for name in ("key", "value"):
        scale = arrays[f"{name}_scale"]
        scale[:] = 4 / (127 if kv == "int8" else 7)
        numbers = random.standard_normal((1, 2, shape.capacity, 128), np.float32)
        codes = np.clip(np.round(numbers / scale), -8 if kv == "int4" else -128, 7 if kv == "int4" else 127)
        packed = (codes[..., ::2] + 8 + 16 * (codes[..., 1::2] + 8)).astype(np.uint8)
        arrays[f"past_{name}"] = packed if kv == "int4" else codes.astype(np.int8)
        floats[f"past_{name}"] = numbers
    floats = {name: array for name, array in floats.items() if "scale" not in name}
    actual, keys, values = attention_session(kv, 16, library).run(None, arrays)
    of_codes = exact(shape, arrays, keys, values).attended.reshape(actual.shape)
    of_floats = attention_session("float32", 16, library).run(None, floats)[0]
    lost, added = np.square(of_codes - of_floats).mean() ** 0.5, np.square(actual - of_codes).mean() ** 0.5
    assert added < lost / 16


@pytest.mark.parametrize("kv", QUANTIZED)
@pytest.mark.parametrize("num_tokens", [1, 20])
@pytest.mark.parametrize("stray", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_not_hidden(
    library: NativeLibrary, instructions: str, kv: str, num_tokens: int, stray: float
) -> None:
    """Nor does it reach another row, another token or another head."""
    shape = Shape([100, 100], num_tokens, 4, 2, 64)
    session = attention_session(kv, shape.num_heads, library)
    arrays = random_step(kv, shape)
    clean = session.run(None, arrays)[0]
    arrays["query"][1, -1, 64 + 5] = stray
    attended = session.run(None, arrays)[0]
    assert not np.isfinite(attended[1, -1, 64:128]).any()
    attended[1, -1, 64:128] = clean[1, -1, 64:128]
    assert np.array_equal(attended, clean)
