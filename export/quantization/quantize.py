"""Symmetric quantisation in blocks along the input features, in the byte layout of ONNX Runtime's kernels.

A row of input features is cut into blocks, each with one float32 scale: weight = (code - zero_point) * scale, with zero
points 128 (8 bits) and 8 (4 bits), which MatMulNBits, QMoE and GatherBlockQuantized assume when they are given none.
Two 4-bit codes share a byte, the even input feature in the low nibble.

Which scale: a few steps t are tried a block, and the one that loses least is kept. With q the codes that a trial rounds
x to, and r = x / t - q what they leave, the best scale for q is t (1 + q.r / q.q), and its error is
t^2 (r.r - (q.r)^2 / q.q): a form in which nothing cancels, though at 8 bits it is a hundred-thousandth of x.x. The
weights are rounded once more with the best scale of the best trial. Input features may count differently: with an
importance w the products are weighted by it.

A block's codes and scale depend on the block alone, not on what comes with it.
"""

from __future__ import annotations

import numpy as np
import torch

from qwonnx.export.quantization.quantize_kernel import quantize_rows

# Steps tried, as fractions of the reciprocal of the plain step, extreme / -8 or extreme / -128. Plain rounding comes
# first: no other may lose more. Found by greedy choice on normal and Student-t weights in blocks of 32 to 128; with 7
# the squared error is within 0.6% (4 bits) and 4% (8 bits) of what a fine grid gives (docs/quantization.md). Above 1
# the extreme is clipped; below, the opposite side has room too. 127/128 is the symmetric rounding of 8 bits.
TRIALS = {
    4: (1.0, 0.89, 0.96, 1.04, 1.08, 1.13, 1.2),
    8: (1.0, 127 / 128, 0.984, 0.976, 0.968, 0.962, 0.954),
}
# With importance, extremes that hardly count are clipped further: up to 6% less of the weighted error.
CLIPPING_TRIALS: dict[int, tuple[float, ...]] = {4: (1.3, 1.45, 1.7), 8: ()}


class NonFiniteWeightError(ValueError):
    """A weight is NaN or infinite; the caller knows its name."""


def quantize_blocks(
    weights: torch.Tensor,
    bits: int,
    codes: torch.Tensor,
    scales: torch.Tensor,
    importance: torch.Tensor | None = None,
) -> None:
    """Quantise rows of weights. Takes no memory to speak of beside its arguments, and other threads may run meanwhile.

    Scales may be negative: the block's extreme, whatever its sign, lies on the side of the code -8 (or -128), which has
    no positive counterpart. A block whose extreme is too small for its scale to have a reciprocal (below 1e-36 at 8
    bits) becomes zero, with scale 0.

    Args:
        weights: float32 [rows, in_features], contiguous.
        bits: 8 or 4.
        codes: uint8 [rows, in_features * bits / 8], contiguous; written.
        scales: float32 [rows, in_features / block_size], contiguous; written.
        importance: float32 [in_features], positive: what the squared error of an input feature counts, such as the mean
            square of the activations that meet it. None: all count alike.

    Raises:
        NonFiniteWeightError: a weight is NaN or infinite.
    """
    trials = TRIALS[bits] if importance is None else TRIALS[bits] + CLIPPING_TRIALS[bits]
    values = weights.numpy()
    if not quantize_rows(
        values,
        values.view(np.uint32),
        None if importance is None else importance.contiguous().numpy(),
        np.array(trials, np.float32),
        bits,
        codes.numpy(),
        scales.numpy(),
    ):
        raise NonFiniteWeightError
