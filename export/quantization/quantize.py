"""Symmetric quantisation in blocks along the input features, in the byte layout of ONNX Runtime's kernels.

A row of input features is cut into blocks, each with one float32 scale: weight = (code - zero_point) * scale, with zero
points 128 (8 bits) and 8 (4 bits), which MatMulNBits, QMoE and GatherBlockQuantized assume by default.
Two 4-bit codes share a byte, the even input feature in the low nibble.

Choice of the scale: a few steps t are tried for each block, and the one with the least error is kept. A trial rounds x
to codes q and leaves r = x / t - q. The best scale for q is t (1 + q.r / q.q), and its error is
t^2 (r.r - (q.r)^2 / q.q). This form avoids cancellation, although at 8 bits the error is a hundred-thousandth of x.x.
The weights are rounded once more with the best scale of the best trial. An importance w of input features weights the
products.

A block's codes and scale depend on the block alone.
"""

from __future__ import annotations

import numpy as np
import torch

from qwonnx.export.quantization.quantize_kernel import quantize_rows

# Steps tried, as fractions of the reciprocal of the plain step, extreme / -8 or extreme / -128. Plain rounding comes
# first, so the result is never worse. Found by greedy choice on normal and Student-t weights in blocks of 32 to 128;
# with 7 the squared error is within 0.6% (4 bits) and 4% (8 bits) of a fine grid's (docs/quantization.md). Above 1 the
# extreme is clipped; below 1 the opposite side also has room. 127/128 is the symmetric rounding of 8 bits.
TRIALS = {
    4: (1.0, 0.89, 0.96, 1.04, 1.08, 1.13, 1.2),
    8: (1.0, 127 / 128, 0.984, 0.976, 0.968, 0.962, 0.954),
}
# With importance, unimportant extremes are clipped further: this removes up to 6% of the weighted error.
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
    """Quantise rows of weights. Needs almost no memory beyond its arguments, and lets other threads run.

    Scales may be negative: the block's extreme, of either sign, lies on the side of the code -8 (or -128), which has no
    positive counterpart. If the extreme is too small for a reciprocal of the scale (below 1e-36 at 8 bits), the block
    becomes zero, with scale 0.

    Args:
        weights: float32 [rows, in_features], contiguous.
        bits: 8 or 4.
        codes: uint8 [rows, in_features * bits / 8], contiguous; written.
        scales: float32 [rows, in_features / block_size], contiguous; written.
        importance: float32 [in_features], positive: the weight of each input feature's squared error, such as the mean
            square of its activations. None: all are equal.

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


def dequantize_blocks(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Weights from codes and scales.

    Args:
        codes: uint8 [..., in_features * bits / 8].
        scales: float32 [..., in_features / block_size].
        bits: 8 or 4.

    Returns:
        float32 [..., in_features].
    """
    unpacked = codes if bits == 8 else torch.stack((codes & 0xF, codes >> 4), -1).flatten(-2)
    values = unpacked.float() - (128 if bits == 8 else 8)
    blocks = values.view(*scales.shape, -1) * scales.unsqueeze(-1)
    return blocks.flatten(-2)
