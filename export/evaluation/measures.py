"""Likelihood of tokens under logits, and divergence of two models' predictions: in float64, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]  # [n, vocab_size]
TokenIds = npt.NDArray[np.int64]  # [n]
Float64 = npt.NDArray[np.float64]

_BLOCK_ROWS = 32  # of logits at a time: 64 MB at the real vocabulary


@dataclass(frozen=True, slots=True)
class TokenScores:
    """For each of n predictions: -log p of the actual token, float64, and the likeliest token, int64."""

    surprise: Float64
    likeliest: TokenIds


def log_softmax(logits: Logits) -> Float64:
    """Logarithms of probabilities, over the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def token_scores(logits: Logits, targets: TokenIds, num_tokens: int | None = None) -> TokenScores:
    """Scores of tokens [n] under logits [n, vocab_size].

    If num_tokens is given, only the first num_tokens logits count: the rows after them pad the vocabulary and are never
    generated.
    """
    logits = logits[:, :num_tokens]
    surprise = np.empty(len(targets))
    for block in _blocks(len(targets)):
        rows = logits[block].astype(np.float64)
        taken = np.take_along_axis(rows, targets[block, None], axis=-1)[:, 0]
        highest = rows.max(axis=-1)
        surprise[block] = np.log(np.exp(rows - highest[:, None]).sum(axis=-1)) + highest - taken
    return TokenScores(surprise, logits.argmax(axis=-1).astype(np.int64))


def kl_divergence(expected: Logits, actual: Logits) -> Float64:
    """KL(expected || actual) of each prediction [n], in nats."""
    divergence = np.empty(len(expected))
    for block in _blocks(len(expected)):
        log_p, log_q = log_softmax(expected[block]), log_softmax(actual[block])
        divergence[block] = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return divergence


def perplexity(surprise: Float64) -> float | None:
    """exp of the mean of -log p; None if there are no tokens or the result is not finite."""
    mean = float(surprise.mean()) if len(surprise) else math.inf
    return math.exp(mean) if mean < 700 else None


def _blocks(num_rows: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, num_rows, _BLOCK_ROWS))
