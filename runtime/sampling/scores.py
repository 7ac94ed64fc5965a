"""The scores from which a token is chosen, before the temperature, and the log probabilities that they stand for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.intp]


class TokenLogprob(Struct, frozen=True):
    """A token and the natural logarithm of its probability."""

    token_id: int
    logprob: float


class SampledLogprobs(Struct, frozen=True):
    """A sampled token, and the most likely ones in its place, in falling order."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


class Scores(Struct, frozen=True):
    """Logits after bias and penalties, of the tokens that may be chosen.

    values: float32 `[n]`; a token that may not be chosen has no value, or minus infinity.
    ids: ascending ids of the values; None: every id has one.
    """

    values: FloatArray
    ids: IntArray | None = None

    def logprobs(self, token_id: int, num_top: int) -> SampledLogprobs:
        """Log probabilities: of the softmax of the values, in float64.

        Args:
            token_id: of these tokens.
            num_top: of the most likely tokens; fewer if fewer may be chosen.
        """
        values = self.values.astype(np.float64)
        highest = values.max()
        total = highest + np.log(np.exp(values - highest).sum())
        place = token_id if self.ids is None else int(np.searchsorted(self.ids, token_id))
        likeliest = np.argpartition(-values, min(num_top, values.size - 1))[:num_top]
        likeliest = likeliest[np.argsort(-values[likeliest], kind="stable")]
        return SampledLogprobs(
            TokenLogprob(token_id, float(values[place] - total)),
            tuple(
                TokenLogprob(int(each if self.ids is None else self.ids[each]), float(values[each] - total))
                for each in likeliest
                if np.isfinite(values[each])
            ),
        )
