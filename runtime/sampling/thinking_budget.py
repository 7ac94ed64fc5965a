"""A bound for the reasoning of one answer: when it is used up, the closing tag is the only choice."""

from __future__ import annotations

from qwonnx.runtime.text.tokenizer import Tokenizer

_THINK_END = b"</think>"
_CLOSING = "\n</think>\n\n"  # as the model's template writes it


class ThinkingBudget:
    """The state of one answer that begins in its reasoning.

    Args:
        num_tokens: of reasoning at most; those of the closing tag come after them.
        tokenizer: the model's.
    """

    def __init__(self, num_tokens: int, tokenizer: Tokenizer) -> None:
        self._left = num_tokens
        self._tokenizer = tokenizer
        self._closing = tokenizer.encode(_CLOSING)
        self._num_closed = 0
        self._tail = b""  # last bytes of the reasoning
        self._is_thinking = True

    def forced(self) -> int | None:
        """The token that must come next; None if the model chooses."""
        return self._closing[self._num_closed] if self._is_thinking and self._left <= 0 else None

    def accept(self, token_id: int) -> None:
        """Take the next token, which is forced() if that is not None."""
        if not self._is_thinking:
            return
        if self._left <= 0:
            self._num_closed += 1
            self._is_thinking = self._num_closed < len(self._closing)
            return
        self._left -= 1
        self._tail += self._tokenizer.token_bytes(token_id)
        self._is_thinking = _THINK_END not in self._tail
        self._tail = self._tail[1 - len(_THINK_END) :]
