"""Choose the next token of one request from its logits.

In this order, each step as in transformers' processor of that name: logit bias, repetition penalty, then presence and
frequency penalties, temperature, top_k, top_p, min_p, and a draw by the inverse of the cumulative distribution over
token ids. If a guide restricts the tokens, the others are removed before the temperature: top_k and top_p count only
allowed ones. A draw consumes one number of the request's own generator, so other requests do not affect it.

The vocabulary has 250,000 tokens and a step may have many rows, so it is never sorted as a whole: top_k finds its
threshold among the maxima of blocks, and top_p first drops tokens that cannot be in the nucleus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from qwonnx.runtime.errors import SessionError
from qwonnx.runtime.sampling.entropy import fresh_seed
from qwonnx.runtime.sampling.logits import TopLogits
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.sampling.penalties import Penalties
from qwonnx.runtime.sampling.philox import Philox
from qwonnx.runtime.sampling.scores import FloatArray, IntArray, Scores

_COLDEST = 1e-6  # a lower temperature is 0: float32 may not divide by it, and logits are not that close
_BLOCK = 256  # tokens per block, for the threshold of top_k and for the draw


class AllowedTokens(Struct, frozen=True):
    """The tokens that may be chosen: those with these ascending ids, or with all_but all others."""

    ids: IntArray
    all_but: bool


class Sampler:
    """The sampling of one request, with its generator and its penalties.

    Args:
        params: the request's.
        prompt_token_ids: for the repetition penalty.
        num_tokens: ids from here on pad the vocabulary and are never chosen.
        random: returns the next number in [0, 1). None: a generator with the request's seed, or a new one.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        num_tokens: int,
        random: Callable[[], float] | None = None,
    ) -> None:
        self._params = params
        self._num_tokens = num_tokens
        seed = fresh_seed() if params.seed is None else params.seed & 0xFFFF_FFFF_FFFF_FFFF
        self._random = random or Philox(seed).random
        self._biased_ids = np.fromiter(params.logit_bias.keys(), dtype=np.intp)
        self._biases = np.fromiter(params.logit_bias.values(), dtype=np.float32)
        self._penalties = Penalties(params, prompt_token_ids)

    def resume(self, generated: Sequence[int]) -> None:
        """Take tokens as if sample() had chosen them, with one draw for each where it draws."""
        for token in generated:
            self._penalties.count(token)
            if self._params.temperature >= _COLDEST:
                self._random()

    def sample(self, logits: FloatArray, allowed: AllowedTokens | None = None) -> int:
        """The next token: choose() among scores().

        Raises:
            SessionError: see choose().
        """
        return self.choose(self.scores(logits, allowed))

    def scores(self, logits: FloatArray, allowed: AllowedTokens | None = None) -> Scores:
        """The scores of the tokens that may be chosen.

        Args:
            logits: `[vocab_size]`; not changed.
            allowed: tokens to choose from, at least one; None is all of them.
        """
        values = self._penalties.apply(self._biased(logits[: self._num_tokens]))
        if allowed is None:
            return Scores(values)
        if not allowed.all_but:
            return Scores(values[allowed.ids], allowed.ids)
        values = values.copy()
        values[allowed.ids] = -np.inf
        return Scores(values)

    def choose(self, scores: Scores) -> int:
        """A token by its score.

        Raises:
            SessionError: the largest score is not a finite number, so the model's output is meaningless.
        """
        return self._choose(scores.values, scores.ids)

    def sample_top(self, top: TopLogits, allowed: AllowedTokens | None = None) -> int | None:
        """The token that sample() would choose, from a row's largest logits.

        Returns:
            None if they do not decide: then nothing is drawn or counted, and sample() chooses.
        """
        wanted = 1 if self._params.temperature < _COLDEST else self._params.top_k
        only_lower = self._penalties.only_lower and not self._biased_ids.size
        if wanted is None or not only_lower or (allowed is not None and not allowed.all_but):
            return None
        known = np.flatnonzero((top.ids >= 0) & (top.ids < self._num_tokens))
        order = known[np.argsort(top.ids[known])]
        ids, scores = top.ids[order], self._penalties.apply(top.values[order], top.ids[order])
        if allowed is not None and allowed.ids.size:
            places = np.minimum(np.searchsorted(allowed.ids, ids), allowed.ids.size - 1)
            scores = np.where(allowed.ids[places] == ids, np.float32(-np.inf), scores)
        # Tokens that are not among them have at most the last value, which nothing raises.
        if wanted > ids.size or not np.partition(scores, -wanted)[-wanted] > top.values[-1]:
            return None
        return self._choose(scores, ids)

    def _choose(self, scores: FloatArray, chosen_from: IntArray | None) -> int:
        """A token by its score; chosen_from are the ascending ids of the scores, None is every id."""
        best = int(scores.argmax())  # the index of a NaN, if the scores have one
        if not np.isfinite(scores[best]):
            raise SessionError("the model's logits are not finite numbers: check the artifact with `qwonnx verify`")
        place = best if self._params.temperature < _COLDEST else self._draw(scores, scores[best])
        token = place if chosen_from is None else int(chosen_from[place])
        self._penalties.count(token)
        return token

    def _biased(self, scores: FloatArray) -> FloatArray:
        if not self._biased_ids.size:
            return scores
        scores = scores.copy()
        scores[self._biased_ids] += self._biases
        return scores

    def _draw(self, scores: FloatArray, best: np.float32) -> int:
        params = self._params
        kept: IntArray | None = None  # ascending ids; None is all of them
        if params.top_k is not None and params.top_k < scores.size:
            kept = _top_k(scores, params.top_k)
            scores = scores[kept]
        # Relative to the most likely token, whose weight is 1. float32 here; the sums are float64.
        weights = np.exp((scores - best) / np.float32(params.temperature))
        if params.top_p < 1:
            kept, weights = _narrow(kept, weights, _top_p(weights, params.top_p))
        if params.min_p > 0:
            kept, weights = _narrow(kept, weights, np.flatnonzero(weights >= np.float32(params.min_p)))
        place = _place(weights, self._random())
        return place if kept is None else int(kept[place])


def _narrow(kept: IntArray | None, weights: FloatArray, places: IntArray) -> tuple[IntArray, FloatArray]:
    return (places if kept is None else kept[places]), weights[places]


def _place(weights: FloatArray, share: float) -> int:
    """Index at which the cumulative weight exceeds `share` (0 to 1) of the total; its own weight is not 0."""
    # First the block, then the index in it: a running sum of the whole vocabulary takes as long as a small model's
    # step.
    starts = np.arange(0, weights.size, _BLOCK)
    reached = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    wanted = share * reached[-1]
    block = _passing(reached, wanted)
    start = int(starts[block])
    within = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    before = float(reached[block - 1]) if block else 0.0
    return start + _passing(within, wanted - before)


def _passing(running: npt.NDArray[np.float64], wanted: float) -> int:
    """Index at which a running sum exceeds `wanted`; the last that adds weight, if rounding left `wanted` too large."""
    return int(min(np.searchsorted(running, wanted, side="right"), np.searchsorted(running, running[-1])))


def _top_k(scores: FloatArray, k: int) -> IntArray:
    """Ascending ids of the k largest scores, and of those equal to the k-th."""
    whole = scores.size - scores.size % _BLOCK
    lower = np.float32(-np.inf)
    if whole >= 2 * k * _BLOCK:
        # The maxima of k blocks are at least this, so at least k scores are.
        maxima = scores[:whole].reshape(-1, _BLOCK).max(axis=1)
        lower = np.partition(maxima, -k)[-k]
    candidates = np.flatnonzero(scores >= lower)
    values = scores[candidates]
    largest: IntArray = candidates[values >= np.partition(values, -k)[-k]]
    return largest


def _top_p(weights: FloatArray, top_p: float) -> IntArray:
    """Ascending indices of the fewest largest weights whose sum reaches the share top_p of the total."""
    total = float(weights.sum(dtype=np.float64))
    # All weights below this bound sum to less than the part outside the nucleus, so the nucleus does not need them.
    candidates = np.flatnonzero(weights >= (1 - top_p) * total / weights.size)
    if candidates.size == 0:  # equal weights, rounded
        candidates = np.arange(weights.size)
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    reached = np.cumsum(weights[order], dtype=np.float64)
    before = np.concatenate(([0.0], reached[:-1]))
    return np.sort(order[before < top_p * total])
