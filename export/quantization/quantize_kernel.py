"""The inner loop of quantisation, compiled by numba for the processor of this machine.

A block is tried, chosen and packed while it is in the first-level cache. This takes between a half and a fifth of the
time of the same arithmetic on whole tensors. numba, unlike C, needs no build before installation.

Sums may be taken in any order (`reassoc`), so their last bits may differ between types of processor; on one machine a
block always gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
# Below this a scale's reciprocal overflows: float32 cannot divide by it.
_SMALLEST_SCALE = np.float32(2.0**-126)
_MAGNITUDE, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x7F800000)  # of a float32's bits; NaN lies beyond

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _compiled(function: _Function) -> _Function:
    options = {"nogil": True, "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        # Compiling takes two seconds: the result is kept in this folder, or in the user's cache if it is read-only.
        kept: _Function = numba.njit(cache=True, **options)(function)
        return kept
    except RuntimeError:  # no folder can be written
        compiled: _Function = numba.njit(**options)(function)
        return compiled


@_compiled
def quantize_rows(
    values: npt.NDArray[np.float32],
    words: npt.NDArray[np.uint32],
    importance: npt.NDArray[np.float32] | None,
    trials: npt.NDArray[np.float32],
    bits: int,
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float32],
) -> bool:
    """Quantise rows. Returns False if a value is not finite; the outputs are then undefined.

    Args:
        values: float32 [rows, in_features].
        words: the same bytes as uint32.
        importance: float32 [in_features] or None.
        trials: float32 [trials], the first being 1.
        bits: 4 or 8.
        codes: uint8 [rows, in_features * bits / 8]; written.
        scales: float32 [rows, in_features / block_size]; written.
    """
    num_rows, num_blocks = scales.shape
    block_size = values.shape[1] // num_blocks
    lowest, highest = np.float32(-(1 << (bits - 1))), np.float32((1 << (bits - 1)) - 1)
    zero_point = 1 << (bits - 1)
    units = np.empty(block_size, np.float32)  # the block in units of its plain step: no sum of squares overflows
    levels = np.empty(block_size, np.uint8)
    for row in range(num_rows):
        for block in range(num_blocks):
            first = block * block_size
            largest, smallest, highest_word = values[row, first], values[row, first], np.uint32(0)
            for i in range(first, first + block_size):
                largest, smallest = max(largest, values[row, i]), min(smallest, values[row, i])
                highest_word = max(highest_word, words[row, i] & _MAGNITUDE)
            if highest_word >= _INFINITY:
                return False
            step = (largest if largest >= -smallest else smallest) / lowest
            if abs(step) < _SMALLEST_SCALE:
                step, reciprocal = _ZERO, _ZERO
            else:
                reciprocal = _ONE / step
            for i in range(block_size):
                units[i] = values[row, first + i] * reciprocal

            least, fit = np.float32(np.inf), _ONE
            for trial in trials:
                norm, along, squares = _ZERO, _ZERO, _ZERO
                for i in range(block_size):
                    exact = units[i] * trial
                    level = min(max(np.rint(exact), lowest), highest)
                    rest = exact - level
                    weight = _ONE if importance is None else importance[first + i]
                    norm += weight * level * level
                    along += weight * level * rest
                    squares += weight * rest * rest
                if norm > _ZERO:
                    error = (squares - along * (along / norm)) / (trial * trial)
                    if error < least:
                        least, fit = error, (_ONE + along / norm) / trial

            scales[row, block] = step * fit
            finest = _ONE / fit
            for i in range(block_size):
                level = min(max(np.rint(units[i] * finest), lowest), highest)
                levels[i] = np.uint8(np.int32(level) + zero_point)
            if bits == 8:
                for i in range(block_size):
                    codes[row, first + i] = levels[i]
            else:
                for i in range(block_size // 2):
                    codes[row, first // 2 + i] = levels[2 * i] | (levels[2 * i + 1] << 4)
    return True
