"""The byte format of quantised weights, and how much quantisation may change them."""

from __future__ import annotations

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.export.quantize import NonFiniteWeightError, dequantize_blocks, quantize_blocks


def _quantize(values: np.ndarray, bits: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = values.shape
    codes = torch.full((rows, columns * bits // 8), 0xAA, dtype=torch.uint8)
    scales = torch.full((rows, columns // block_size), torch.nan)
    quantize_blocks(torch.tensor(values, dtype=torch.float32), bits, codes, scales)
    return codes.numpy(), scales.numpy()


def test_int4_codes_count_from_eight_and_the_even_column_is_the_low_nibble() -> None:
    row = [-8, 7, 0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -6, 7.4]
    codes, scales = _quantize(np.array([row]), 4, 16)
    np.testing.assert_array_equal(scales, [[1.0]])
    assert codes.tobytes() == bytes([0xF0, 0x98, 0xA7, 0xB6, 0xC5, 0xD4, 0xE3, 0xF2])


def test_int4_scales_carry_the_sign_of_the_extreme() -> None:
    row = [4.0, -3.5, 0.5, -0.5] * 4
    codes, scales = _quantize(np.array([row]), 4, 16)
    np.testing.assert_array_equal(scales, [[-0.5]])
    assert codes.tobytes() == bytes([0xF0, 0x97] * 4)


def test_an_int4_value_opposite_to_an_equal_extreme_takes_the_last_code() -> None:
    codes, scales = _quantize(np.array([[8.0, -8.0] + [0.0] * 14]), 4, 16)
    assert scales[0, 0] == -1.0
    assert codes[0, 0] == 0xF0  # 8 -> -8 -> code 0; -8 -> 8, of which there is none -> 7 -> code 15


def test_int8_codes_count_from_128_and_the_extremes_are_symmetric() -> None:
    row = [127, -127, 0, 1, -1, 63.4, -63.4, 0.5, 1.5, 2.5, -0.5, -1.5, 100, -100, 126.6, -126.6]
    codes, scales = _quantize(np.array([row]), 8, 16)
    np.testing.assert_array_equal(scales, [[1.0]])
    # Halves go to the even neighbour.
    assert codes.tobytes() == bytes([255, 1, 128, 129, 127, 191, 65, 128, 130, 130, 128, 126, 228, 28, 255, 1])


def test_every_block_has_a_scale_of_its_own() -> None:
    values = np.arange(1, 65, dtype=np.float32).reshape(2, 32)
    _, scales = _quantize(values, 8, 16)
    np.testing.assert_array_equal(scales, np.array([[16, 32], [48, 64]], np.float32) / np.float32(127))


@pytest.mark.parametrize(("bits", "zero_point"), [(4, 0x88), (8, 0x80)])
@pytest.mark.parametrize("tiny", [0.0, -0.0, 1e-45, 1e-40])
def test_a_block_of_zeros_or_of_almost_nothing_has_scale_zero_and_no_nan(
    bits: int, zero_point: int, tiny: float
) -> None:
    codes, scales = _quantize(np.full((2, 32), tiny), bits, 16)
    assert not scales.any()
    assert (codes == zero_point).all()


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


@settings(deadline=None, max_examples=60)
@given(
    values=st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
        lambda size: arrays.arrays(np.float32, (size[0], 32 * size[1]), elements=_FLOATS)
    ),
    bits=st.sampled_from([4, 8]),
    block_size=st.sampled_from([16, 32]),
)
def test_no_weight_moves_further_than_its_blocks_step_allows(values: np.ndarray, bits: int, block_size: int) -> None:
    codes, scales = _quantize(values, bits, block_size)
    restored = dequantize_blocks(torch.tensor(codes), torch.tensor(scales), bits).numpy()
    step = np.abs(scales).repeat(block_size, axis=1).astype(np.float64)
    # Half a step, but a whole one opposite to an int4 extreme; blocks of almost nothing may vanish.
    bound = np.maximum(step * (1.0 if bits == 4 else 0.5) * (1 + 1e-5), 2e-36)
    assert (np.abs(restored.astype(np.float64) - values) <= bound).all()
    extremes = np.abs(values).reshape(-1, block_size).max(1)
    kept = np.abs(restored).reshape(-1, block_size).max(1)
    np.testing.assert_allclose(kept, np.where(scales.ravel() == 0, 0, extremes), rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(arrays.arrays(np.uint8, (3, 16)), st.sampled_from([4, 8]))
def test_what_was_quantised_once_quantises_to_equal_weights(codes: np.ndarray, bits: int) -> None:
    scales = torch.tensor([[0.5], [-2.0], [1.0]])
    values = dequantize_blocks(torch.tensor(codes), scales, bits)
    again_codes, again_scales = _quantize(values.numpy(), bits, values.shape[1])
    again = dequantize_blocks(torch.tensor(again_codes), torch.tensor(again_scales), bits)
    # Where the extreme code occurs the step is the same; else it is finer, and may not divide the old one.
    step = np.abs(again_scales)
    assert (np.abs(again.numpy() - values.numpy()) <= step).all()
    rows = np.abs(values.numpy()).max(1) == np.abs(scales.numpy())[:, 0] * (8 if bits == 4 else 127)
    np.testing.assert_allclose(again.numpy()[rows], values.numpy()[rows], rtol=1e-6)


@pytest.mark.parametrize(("block_size", "symmetric", "expected"), [(32, 0.0094, 0.0074), (128, 0.0138, 0.0107)])
def test_the_signed_extreme_loses_less_than_a_symmetric_step(
    block_size: int, symmetric: float, expected: float
) -> None:
    values = np.random.default_rng(1).standard_normal((4000, 128)).astype(np.float32)
    codes, scales = _quantize(values, 4, block_size)
    error = np.square(dequantize_blocks(torch.tensor(codes), torch.tensor(scales), 4).numpy() - values).mean()
    blocks = values.reshape(-1, block_size)
    step = np.abs(blocks).max(1, keepdims=True) / 7
    symmetric_error = np.square(np.rint(blocks / step) * step - blocks).mean()
    assert error == pytest.approx(expected, rel=0.02)
    assert symmetric_error == pytest.approx(symmetric, rel=0.02)
