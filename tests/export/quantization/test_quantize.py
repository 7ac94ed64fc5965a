"""The byte format of quantised weights, and bounds of their error."""

from __future__ import annotations

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.export.quantization.quantize import NonFiniteWeightError, quantize_blocks
from tests.export.dequantized import dequantize_blocks

Array = npt.NDArray[Any]
LAYOUTS = json.loads((Path(__file__).parent / "data" / "quantized_layouts.json").read_text())["cases"]


def _quantize(values: Array, bits: int, block_size: int, importance: Array | None = None) -> tuple[Array, Array]:
    rows, columns = values.shape
    codes = torch.full((rows, columns * bits // 8), 0xAA, dtype=torch.uint8)
    scales = torch.full((rows, columns // block_size), torch.nan)
    weights = None if importance is None else torch.tensor(importance, dtype=torch.float32)
    quantize_blocks(torch.tensor(values, dtype=torch.float32), bits, codes, scales, weights)
    return codes.numpy(), scales.numpy()


def _restored(values: Array, bits: int, block_size: int, importance: Array | None = None) -> npt.NDArray[np.float64]:
    codes, scales = (torch.tensor(array) for array in _quantize(values, bits, block_size, importance))
    return dequantize_blocks(codes, scales, bits).numpy().astype(np.float64)


def _block_errors(restored: Array, values: Array, block_size: int, importance: Array | None = None) -> Array:
    """Sum of the (weighted) squared errors of every block, in float64."""
    squares = np.square(restored - values.astype(np.float64))
    return np.asarray((squares if importance is None else squares * importance).reshape(-1, block_size).sum(1))


def _plainly_rounded(values: Array, bits: int, block_size: int) -> npt.NDArray[np.float64]:
    """Rounding with the step extreme / -8 or -128 of the signed extreme, in float64."""
    levels = 2 ** (bits - 1)
    blocks = values.astype(np.float64).reshape(-1, block_size)
    extremes = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    steps = np.where(extremes == 0, 1.0, extremes / -levels)
    return np.asarray((np.rint(blocks / steps).clip(-levels, levels - 1) * steps).reshape(values.shape))


@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: f"{case['bits']} bits, blocks of {case['block_size']}")
def test_bytes_of_every_layout(case: dict[str, Any]) -> None:
    bits, block_size, scales = case["bits"], case["block_size"], np.array(case["scales"], np.float32)
    values = np.array(case["levels"]) * scales.repeat(block_size, axis=1)
    codes, found = _quantize(values, bits, block_size)
    np.testing.assert_array_equal(found, scales)
    assert [row.tobytes().hex() for row in codes] == case["codes"]
    np.testing.assert_array_equal(_restored(values, bits, block_size), values)


def test_int4_codes_count_from_eight_and_the_even_column_is_the_low_nibble() -> None:
    row = [-8, 7, 0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7]
    codes, scales = _quantize(np.array([row]), 4, 16)
    np.testing.assert_array_equal(scales, [[1.0]])
    assert codes.tobytes() == bytes([0xF0, 0x98, 0xA7, 0xB6, 0xC5, 0xD4, 0xE3, 0xF2])


def test_int4_scales_carry_the_sign_of_the_extreme() -> None:
    row = [4.0, -3.5, 0.5, -0.5] * 4
    codes, scales = _quantize(np.array([row]), 4, 16)
    np.testing.assert_array_equal(scales, [[-0.5]])
    assert codes.tobytes() == bytes([0xF0, 0x97] * 4)


@pytest.mark.parametrize("bits", [4, 8])
def test_two_opposite_extremes_are_kept_alike(bits: int) -> None:
    values = np.array([[8.0, -8.0] + [0.0] * 14])
    np.testing.assert_allclose(_restored(values, bits, 16), values, rtol=1e-6)


def test_int8_codes_count_from_128() -> None:
    row = [-128, -127, 0, 1, -1, 63, -63, 2, 3, 4, -5, -6, 100, -100, 126, 127]
    codes, scales = _quantize(np.array([row]), 8, 16)
    np.testing.assert_array_equal(scales, [[1.0]])
    assert codes.tobytes() == bytes([0, 1, 128, 129, 127, 191, 65, 130, 131, 132, 123, 122, 228, 28, 254, 255])


@pytest.mark.parametrize(("bits", "zero_point"), [(4, 0x88), (8, 0x80)])
@pytest.mark.parametrize("tiny", [0.0, -0.0, 1e-45, 1e-40])
def test_a_block_of_zeros_or_of_almost_nothing_has_scale_zero_and_no_nan(
    bits: int, zero_point: int, tiny: float
) -> None:
    for importance in (None, np.ones(32)):
        codes, scales = _quantize(np.full((2, 32), tiny), bits, 16, importance)
        assert not scales.any()
        assert (codes == zero_point).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_huge_and_tiny_weights_keep_their_relative_error(bits: int) -> None:
    values = np.random.default_rng(0).standard_normal((4, 64))
    values /= np.abs(values).max()
    expected = np.square(_restored(values, bits, 16) - values).sum()
    for factor in (2.0**127, 2.0**-100):
        restored = _restored(values * factor, bits, 16) / factor
        assert np.square(restored - values).sum() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_wherever_it_stands(bits: int, odd: float) -> None:
    for place in (0, 17, 63):
        values = np.ones((2, 32))
        values.flat[place] = odd
        with pytest.raises(NonFiniteWeightError):
            _quantize(values, bits, 16)


def test_leading_axes_are_kept_when_experts_are_dequantised() -> None:
    values = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    codes, scales = (torch.tensor(array) for array in _quantize(values, 4, 16))
    flat = dequantize_blocks(codes, scales, 4)
    assert torch.equal(dequantize_blocks(codes.view(2, 3, 16), scales.view(2, 3, 2), 4), flat.view(2, 3, 32))


_FLOATS = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1, width=32)
_SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.sampled_from([16, 32, 64, 128, 256]))


@settings(deadline=None, max_examples=100)
@given(
    shaped=_SHAPES.flatmap(
        lambda shape: st.tuples(
            st.just(shape[2]), arrays.arrays(np.float32, (shape[0], shape[1] * shape[2]), elements=_FLOATS)
        )
    ),
    bits=st.sampled_from([4, 8]),
    seed=st.none() | st.integers(0, 99),
)
def test_no_block_loses_more_than_by_plain_rounding(shaped: tuple[int, Array], bits: int, seed: int | None) -> None:
    block_size, values = shaped
    random = np.random.default_rng(seed)
    importance = None if seed is None else random.uniform(0.01, 10.0, (values.shape[1],))
    plain = _block_errors(_plainly_rounded(values, bits, block_size), values, block_size, importance)
    found = _block_errors(_restored(values, bits, block_size, importance), values, block_size, importance)
    # float32 sums err by a few units in the last place of the block's squares; blocks of almost nothing may vanish.
    slack = 1e-5 * _block_errors(np.zeros_like(values), values, block_size, importance) + 1e-70
    assert (found <= plain + slack).all()


@settings(deadline=None, max_examples=60)
@given(shape=_SHAPES, bits=st.sampled_from([4, 8]), seed=st.integers(0, 1 << 20))
def test_codes_that_are_unpacked_and_packed_again_are_the_same(
    shape: tuple[int, int, int], bits: int, seed: int
) -> None:
    rows, num_blocks, block_size = shape
    random = np.random.default_rng(seed)
    levels = random.integers(0, 2**bits, (rows, num_blocks, block_size))
    # One weight of each block has the code without a positive counterpart; else a finer step might do as well.
    np.put_along_axis(levels, random.integers(0, block_size, (rows, num_blocks, 1)), 0, 2)
    levels = levels.reshape(rows, -1)
    codes = (levels if bits == 8 else levels[:, ::2] | levels[:, 1::2] << 4).astype(np.uint8)
    scales = np.exp2(random.integers(-20, 20, (rows, num_blocks))) * random.choice([-1.0, 1.0], (rows, num_blocks))
    scales = scales.astype(np.float32)
    values = dequantize_blocks(torch.tensor(codes), torch.tensor(scales), bits).numpy()
    np.testing.assert_array_equal(values, (levels - 2 ** (bits - 1)) * scales.repeat(block_size, axis=1))
    again, again_scales = _quantize(values, bits, block_size)
    np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal(again_scales, scales)


@settings(deadline=None, max_examples=40)
@given(arrays.arrays(np.uint8, (3, 16)), st.sampled_from([4, 8]))
def test_what_was_quantised_once_quantises_to_equal_weights(codes: Array, bits: int) -> None:
    scales = torch.tensor([[0.5], [-2.0], [1.0]])
    values = dequantize_blocks(torch.tensor(codes), scales, bits).numpy()
    again = _restored(values, bits, values.shape[1])
    # Where the extreme code occurs the step is the same; else it is finer, and may not divide the old one.
    rows = np.abs(values).max(1) == np.abs(scales.numpy())[:, 0] * 2 ** (bits - 1)
    np.testing.assert_allclose(again[rows], values[rows], rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_bytes_do_not_depend_on_slices_or_threads(bits: int, block_size: int) -> None:
    random = np.random.default_rng(2)
    values, importance = random.standard_normal((23, 384)), random.uniform(0.1, 3.0, 384)
    for weights in (None, importance):
        whole = _quantize(values, bits, block_size, weights)

        def part(rows: slice, weights: Array | None = weights) -> tuple[Array, Array]:
            return _quantize(values[rows], bits, block_size, weights)

        for height in (1, 7, 20):
            slices = [slice(start, start + height) for start in range(0, len(values), height)]
            with ThreadPoolExecutor(4) as pool:
                for parts in (list(map(part, slices)), list(pool.map(part, slices))):
                    for index in (0, 1):
                        np.testing.assert_array_equal(np.concatenate([pair[index] for pair in parts]), whole[index])


def test_bytes_do_not_depend_on_torchs_threads() -> None:
    values = np.random.default_rng(3).standard_normal((256, 1024))
    before = torch.get_num_threads()
    try:
        found = []
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            found.append(_quantize(values, 4, 32))
    finally:
        torch.set_num_threads(before)
    for codes, scales in found[1:]:
        np.testing.assert_array_equal(codes, found[0][0])
        np.testing.assert_array_equal(scales, found[0][1])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block_size", [32, 128])
def test_importance_lowers_the_weighted_error(bits: int, block_size: int) -> None:
    random = np.random.default_rng(4)
    values = random.standard_normal((400, 256))
    importance = np.exp(random.normal(0, 1.5, 256))
    unweighted, weighted = (
        _block_errors(_restored(values, bits, block_size, weights), values, block_size, importance).sum()
        for weights in (None, importance)
    )
    assert weighted < (0.87 if bits == 4 else 0.97) * unweighted


def test_the_unit_of_importance_does_not_count() -> None:
    random = np.random.default_rng(5)
    values, importance = random.standard_normal((50, 128)), random.uniform(0.1, 3.0, 128)
    one, other = (_quantize(values, 4, 32, weights) for weights in (importance, importance * 2.0**30))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_equal_importance_loses_no_more_than_none() -> None:
    values = np.random.default_rng(6).standard_normal((50, 128))
    for bits in (4, 8):
        weighted, plain = (
            _block_errors(_restored(values, bits, 32, weights), values, 32) for weights in (np.ones(128), None)
        )
        assert (weighted <= plain * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("bits", "block_size", "normal", "student"),
    [(4, 32, 0.00657, 0.0124), (4, 128, 0.00940, 0.0250), (8, 32, 2.25e-5, 4.3e-5), (8, 128, 3.8e-5, 11e-5)],
)
def test_the_search_loses_what_it_is_said_to_lose(bits: int, block_size: int, normal: float, student: float) -> None:
    random = np.random.default_rng(1)
    for values, expected in (
        (random.standard_normal((4000, 128)), normal),
        (random.standard_t(4, (4000, 128)), student),
    ):
        error = np.square(_restored(values, bits, block_size) - values).mean() / np.square(values).mean()
        assert error == pytest.approx(expected, rel=0.06)
        plain = np.square(_plainly_rounded(values, bits, block_size) - values).mean() / np.square(values).mean()
        assert error < 0.96 * plain


@pytest.mark.parametrize("weighted", [False, True])
def test_weights_are_only_read_and_no_memory_is_taken(weighted: bool) -> None:
    rows, columns = 600, 1024
    weights = torch.randn(rows, columns)
    before = weights.clone()
    codes, scales = torch.empty((rows, columns // 2), dtype=torch.uint8), torch.empty((rows, columns // 32))
    importance = torch.rand(columns) + 0.1 if weighted else None
    quantize_blocks(weights, 4, codes, scales, importance)  # compiled by now
    tracemalloc.start()
    try:
        quantize_blocks(weights, 4, codes, scales, importance)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
    assert torch.equal(weights, before)
