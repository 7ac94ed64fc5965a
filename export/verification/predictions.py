"""Compares two models' predictions, slice by slice of the vocabulary: all logits of a text are never in memory at once.

Sums of exponentials are kept relative to the largest logit so far, as in an online softmax, in float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LogitSlice:
    """Logits [T, n] of some rows of the head: the checkpoint's, the artifact's, and what the checkpoint's head makes of
    the artifact's last hidden states (None: these are not known).
    """

    rows: slice
    reference: Float32
    artifact: Float32
    own: Float32 | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """The comparison, for T positions.

    kl: nats, checkpoint to artifact [T]. entropy: of the checkpoint's predictions, nats [T].
    surprise_checkpoint, surprise_artifact: -log p of the next token [T - 1].
    same_token: whether both find the same token likeliest [T].
    logit_error: spread of the logits' difference over the vocabulary, relative to the spread of the checkpoint's [T].
    head_error: the same for the artifact's head alone, on its own input; None: not known.
    """

    kl: Float64
    entropy: Float64
    surprise_checkpoint: Float64
    surprise_artifact: Float64
    same_token: npt.NDArray[np.bool_]
    max_logit_difference: float
    logit_error: Float64
    head_error: Float64 | None

    def at(self, positions: TokenIds) -> Predictions:
        """Those of some positions, ascending; the largest difference of logits stays that of all."""
        followed = positions[positions < len(self.surprise_checkpoint)]
        return Predictions(
            kl=self.kl[positions],
            entropy=self.entropy[positions],
            surprise_checkpoint=self.surprise_checkpoint[followed],
            surprise_artifact=self.surprise_artifact[followed],
            same_token=self.same_token[positions],
            max_logit_difference=self.max_logit_difference,
            logit_error=self.logit_error[positions],
            head_error=None if self.head_error is None else self.head_error[positions],
        )


class _Softmax:
    """Of one model: the largest logit, its token, and sums of exp(logit - largest)."""

    def __init__(self, num_tokens: int) -> None:
        self.largest = np.full(num_tokens, -np.inf)
        self.likeliest = np.zeros(num_tokens, np.int64)
        self.total = np.zeros(num_tokens)

    def add(self, first_row: int, logits: Float64) -> tuple[Float64, Float64]:
        """Logits [T, n] of rows from first_row on. Returns exp(logit - largest) [T, n], and the factor [T] by which
        earlier sums shrink.
        """
        best = logits.argmax(-1)
        highest = np.take_along_axis(logits, best[:, None], -1)[:, 0]
        self.likeliest = np.where(highest > self.largest, first_row + best, self.likeliest)
        now = np.maximum(self.largest, highest)
        shrink = np.exp(self.largest - now)
        weights: Float64 = np.exp(logits - now[:, None])
        self.total = self.total * shrink + weights.sum(-1)
        self.largest = now
        return weights, shrink

    @property
    def log_total(self) -> Float64:
        logs: Float64 = np.log(self.total) + self.largest
        return logs


class _Spread:
    """Standard deviation [T] over values that come in slices."""

    def __init__(self, num_tokens: int) -> None:
        self._count, self._sum, self._squares = 0, np.zeros(num_tokens), np.zeros(num_tokens)

    def add(self, values: Float64) -> None:
        self._count += values.shape[-1]
        self._sum += values.sum(-1)
        self._squares += np.square(values).sum(-1)

    @property
    def value(self) -> Float64:
        mean = self._sum / self._count
        return np.sqrt(np.maximum(self._squares / self._count - np.square(mean), 0.0))


def compare_predictions(slices: Iterable[LogitSlice], token_ids: TokenIds) -> Predictions:
    """Compare logits at every position of a text of T tokens; the slices cover all rows of the head, in order."""
    num_tokens, targets = len(token_ids), token_ids[1:]
    checkpoint, artifact = _Softmax(num_tokens), _Softmax(num_tokens)
    of_checkpoint, difference, of_own, head = (_Spread(num_tokens) for _ in range(4))
    cross, energy = np.zeros(num_tokens), np.zeros(num_tokens)  # sums of weights times differences, and times logits
    wanted = np.zeros((2, max(num_tokens - 1, 0)))
    largest, has_own = 0.0, True
    for part in slices:
        p, q = part.reference.astype(np.float64), part.artifact.astype(np.float64)
        weights, shrink = checkpoint.add(part.rows.start, p)
        artifact.add(part.rows.start, q)
        cross = cross * shrink + (weights * (p - q)).sum(-1)
        energy = energy * shrink + (weights * p).sum(-1)
        of_checkpoint.add(p)
        difference.add(q - p)
        largest = max(largest, float(np.abs(p - q).max()))
        if part.own is None:
            has_own = False
        else:
            own = part.own.astype(np.float64)
            of_own.add(own)
            head.add(q - own)
        (here,) = np.nonzero((targets >= part.rows.start) & (targets < part.rows.stop))
        columns = targets[here] - part.rows.start
        wanted[0, here], wanted[1, here] = p[here, columns], q[here, columns]
    logs_p, logs_q = checkpoint.log_total, artifact.log_total
    return Predictions(
        kl=cross / checkpoint.total - logs_p + logs_q,
        entropy=logs_p - energy / checkpoint.total,
        surprise_checkpoint=logs_p[:-1] - wanted[0],
        surprise_artifact=logs_q[:-1] - wanted[1],
        same_token=checkpoint.likeliest == artifact.likeliest,
        max_logit_difference=largest,
        logit_error=_ratio(difference.value, of_checkpoint.value),
        head_error=_ratio(head.value, of_own.value) if has_own else None,
    )


def _ratio(part: Float64, whole: Float64) -> Float64:
    """0 where both are 0: a model of zeros predicts nothing, and is predicted exactly."""
    return np.divide(part, whole, out=np.where(part > 0, np.inf, 0.0), where=whole > 0)
