"""Penalties for tokens that are already in a prompt or an answer, each as in transformers' processor of that name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qwonnx.runtime.sampling.params import SamplingParams

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]


class Penalties:
    """The penalties of one request, and its counts of tokens.

    Args:
        params: repetition_penalty, presence_penalty and frequency_penalty. Without a penalty, tokens are not counted.
        prompt_token_ids: the repetition penalty includes them.
    """

    def __init__(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> None:
        self._params = params
        self._counts: _TokenCounts | None = None
        if params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty:
            self._counts = _TokenCounts(prompt_token_ids)

    @property
    def only_lower(self) -> bool:
        """No score rises."""
        params = self._params
        return params.repetition_penalty >= 1 and params.presence_penalty >= 0 and params.frequency_penalty >= 0

    def apply(self, scores: FloatArray, ids: IntArray | None = None) -> FloatArray:
        """Scores minus the penalties: a new array, or the same one without penalties.

        Args:
            scores: of all tokens, or of the tokens `ids`.
            ids: different tokens.
        """
        params = self._params
        if self._counts is None:
            return scores
        scores = scores.copy()
        seen, counts = (self._counts.ids, self._counts.counts) if ids is None else self._counts.among(ids)
        if params.repetition_penalty != 1:
            penalty = np.float32(params.repetition_penalty)
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        scores[seen] -= params.presence_penalty * (counts > 0) + params.frequency_penalty * counts
        return scores

    def count(self, token: int) -> None:
        """Count one more of this token in the answer."""
        if self._counts is not None:
            self._counts.add(token)


class _TokenCounts:
    """The tokens of a prompt and an answer, each once, and how often the answer has them (0 for the prompt's own).

    The arrays are small: a search in arrays of vocabulary size would take longer than the rest of sampling.
    """

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self._ids = np.unique(np.asarray(prompt_token_ids, dtype=np.intp))
        self._counts = np.zeros(self._ids.size, dtype=np.int32)
        self._size = self._ids.size
        self._slots = {int(token): slot for slot, token in enumerate(self._ids)}

    def among(self, ids: IntArray) -> tuple[IntArray, npt.NDArray[np.int32]]:
        """The places in ids whose tokens are known, and their counts."""
        slots = np.array([self._slots.get(token, -1) for token in ids.tolist()], dtype=np.intp)
        known = np.flatnonzero(slots >= 0)
        return known, self._counts[slots[known]]

    @property
    def ids(self) -> IntArray:
        return self._ids[: self._size]

    @property
    def counts(self) -> npt.NDArray[np.int32]:
        return self._counts[: self._size]

    def add(self, token: int) -> None:
        """Count a generated token."""
        slot = self._slots.setdefault(token, self._size)
        if slot == self._size:
            if slot == self._ids.size:
                room = max(64, slot)
                self._ids = np.concatenate((self._ids, np.zeros(room, dtype=np.intp)))
                self._counts = np.concatenate((self._counts, np.zeros(room, dtype=np.int32)))
            self._ids[slot] = token
            self._size += 1
        self._counts[slot] += 1
