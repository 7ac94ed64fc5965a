"""A prompt that is no conversation: a text, or tokens, that the model continues."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from qwonnx.runtime.text.chat_prompt import ChatPrompt
from qwonnx.runtime.text.template_text import own
from qwonnx.runtime.text.tokenizer import Tokenizer


class TextPrompt(Struct, frozen=True):
    """Tokens to continue; the same names as ChatPrompt's.

    token_ids: of the prompt.
    """

    token_ids: list[int]

    @property
    def thinking_open(self) -> bool:
        """No template opens the reasoning."""
        return False

    @property
    def turn_ends(self) -> tuple[int, ...]:
        """The last position at which a state can be kept: other answers to the same prompt begin there."""
        return (len(self.token_ids) - 1,) if len(self.token_ids) > 1 else ()

    @property
    def snapshot_at(self) -> tuple[int, ...]:
        return self.turn_ends

    def parser(self) -> None:
        """The answer is text, whatever it contains."""


Prompt = ChatPrompt | TextPrompt


def encode_text(tokenizer: Tokenizer, prompt: str | Sequence[int], at_most: int | None = None) -> TextPrompt:
    """The prompt's tokens. Special tokens that a text spells are these tokens: whoever sends it writes all of it.

    Args:
        tokenizer: the model's.
        prompt: a text, or tokens, which stay as they are.
        at_most: a text that surely has more tokens is refused before the work.

    Raises:
        InvalidRequestError: the text has more tokens than at_most.
    """
    if not isinstance(prompt, str):
        return TextPrompt(list(prompt))
    return TextPrompt(tokenizer.encode_chat(own(prompt), at_most).token_ids)
