"""Symmetric quantisation in blocks along the input features, in the byte layout of ONNX Runtime's kernels.

A row of input features is cut into blocks, each with one float32 scale: weight = (code - zero_point) * scale, with zero
points 128 (8 bits) and 8 (4 bits), which MatMulNBits, QMoE and GatherBlockQuantized assume when they are given none.
Two 4-bit codes share a byte, the even input feature in the low nibble.

Which scale: a few are tried a block, and the one that loses least is kept. With q the codes that a trial rounds to, the
best scale for them is (x.q) / (q.q), which leaves the error x.x - (x.q)^2 / (q.q); so the trial with the largest
(x.q)^2 / (q.q) wins, and its weights are rounded once more with its best scale. Input features may count differently:
with an importance w the products are weighted by it.

Rows are worked on a few at a time, so that what a trial touches stays in the processor's cache, and memory beside the
arguments is what `scratch_bytes` says. A block's codes and scale depend on the block alone, not on what comes with it.
"""

from __future__ import annotations

import torch

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

# Values worked on at once, three times which a trial touches. Half as many take 10% longer, for calls of torch cost the
# same whatever their size; four times as many take 40% longer where other programs use the cache too.
_VALUES_AT_ONCE = 1 << 18

# Below this a scale's reciprocal overflows: float32 cannot divide by it.
_SMALLEST_SCALE = 2.0**-126


class NonFiniteWeightError(ValueError):
    """A weight is NaN or infinite; the caller knows its name."""


def scratch_bytes(num_rows: int, num_columns: int, block_size: int) -> int:
    """Bytes that `quantize_blocks` allocates at its peak beside its arguments."""
    num_values = min(num_rows, _rows_at_once(num_columns)) * num_columns
    # Two float32 a value; a block has at most ten float32 and a truth value at a time.
    return 8 * num_values + 41 * (num_values // block_size)


def quantize_blocks(
    weights: torch.Tensor,
    bits: int,
    codes: torch.Tensor,
    scales: torch.Tensor,
    importance: torch.Tensor | None = None,
) -> None:
    """Quantise rows of weights, which are overwritten: they serve as scratch memory.

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
    height = _rows_at_once(weights.shape[1])
    for rows in (slice(start, start + height) for start in range(0, len(weights), height)):
        _quantize_rows(weights[rows], bits, codes[rows], scales[rows], importance)


def _rows_at_once(num_columns: int) -> int:
    return max(1, _VALUES_AT_ONCE // num_columns)


def _quantize_rows(
    weights: torch.Tensor, bits: int, codes: torch.Tensor, scales: torch.Tensor, importance: torch.Tensor | None
) -> None:
    """What `quantize_blocks` says, at once."""
    num_levels = 1 << (bits - 1)
    blocks = weights.view(scales.numel(), -1)
    steps = scales.view(-1)
    largest, smallest = blocks.amax(-1), blocks.amin(-1)
    torch.where(largest >= -smallest, largest, smallest, out=steps).div_(-num_levels)
    # amax and amin pass NaN on, so one look at the few scales finds whatever is wrong among the many weights.
    if not bool(torch.isfinite(steps).all()):
        raise NonFiniteWeightError
    steps.masked_fill_(steps.abs() < _SMALLEST_SCALE, 0.0)
    # From here on in units of the plain step: a trial is one number for all blocks, and nothing overflows.
    blocks.mul_(steps.reciprocal().masked_fill_(steps == 0, 0.0).unsqueeze(-1))
    trials = TRIALS[bits] if importance is None else TRIALS[bits] + CLIPPING_TRIALS[bits]
    fits = _best_fits(blocks, weights.shape, trials, num_levels, importance)
    blocks.mul_(fits.reciprocal().unsqueeze(-1)).round_().clamp_(-num_levels, num_levels - 1)
    steps.mul_(fits)
    _pack(weights, bits, codes)


def _best_fits(
    blocks: torch.Tensor,
    shape: torch.Size,
    trials: tuple[float, ...],
    num_levels: int,
    importance: torch.Tensor | None,
) -> torch.Tensor:
    """The best scale of every block, [num_blocks], in units of its plain step; 1 for blocks of zeros.

    Args:
        blocks: float32 [num_blocks, block_size], in units of the plain step.
        shape: [rows, in_features] of the same values, along which importance lies.
    """
    rounded, products = torch.empty_like(blocks), torch.empty_like(blocks)
    best = torch.full((len(blocks),), -1.0)
    fits = torch.ones(len(blocks))
    for trial in trials:
        torch.mul(blocks, trial, out=rounded).round_().clamp_(-num_levels, num_levels - 1)
        if importance is None:
            alignment = torch.mul(blocks, rounded, out=products).sum(-1)
            norm = rounded.mul_(rounded).sum(-1)
        else:
            torch.mul(rounded.view(shape), importance, out=products.view(shape))
            norm = rounded.mul_(products).sum(-1)
            alignment = products.mul_(blocks).sum(-1)
        fit = alignment / norm
        score = alignment.mul_(fit)
        better = score > best  # never for blocks of zeros, whose score is 0 / 0
        torch.where(better, fit, fits, out=fits)
        torch.where(better, score, best, out=best)
    return fits


def _pack(levels: torch.Tensor, bits: int, codes: torch.Tensor) -> None:
    """Integers of [rows, in_features], stored as float32, as codes."""
    if bits == 8:
        # int8 and not uint8: torch converts to it eight times as fast. The sign bit flipped is 128 added.
        codes.view(torch.int8).copy_(levels)
        codes.bitwise_xor_(0x80)
        return
    nibbles = torch.empty(levels.shape, dtype=torch.int8).copy_(levels).add_(8)
    # As one 16-bit number a pair is even | odd << 8: shifted by 4 the odd code lies beside the even one.
    pairs = nibbles.view(torch.int16)
    codes.copy_(pairs.bitwise_or(pairs >> 4).bitwise_and_(0xFF))


def dequantize_blocks(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """The weights that codes and scales stand for.

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
