"""Log probabilities in OpenAI's objects: each token with its text, its bytes, and the likeliest ones in its place."""

from __future__ import annotations

from qwonnx.handlers.openai.chat_objects import LogprobToken, TopLogprob
from qwonnx.runtime.sampling.scores import SampledLogprobs, TokenLogprob
from qwonnx.runtime.text.tokenizer import Tokenizer


class LogprobsWriter:
    """Writes log probabilities.

    Args:
        tokenizer: the model's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def token(self, sampled: SampledLogprobs) -> LogprobToken:
        """A sampled token."""
        chosen = self._top(sampled.chosen)
        return LogprobToken(chosen.token, chosen.logprob, chosen.bytes, [self._top(each) for each in sampled.top])

    def _top(self, token: TokenLogprob) -> TopLogprob:
        data = self._tokenizer.token_bytes(token.token_id)
        return TopLogprob(data.decode("utf-8", "replace"), token.logprob, list(data))
