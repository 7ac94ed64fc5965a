"""Tokens to text, as they come: whole characters only.

Tokens are runs of bytes (tokenizer.py), so decoding as one goes is decoding a stream of UTF-8: bytes of an unfinished
character wait for the rest. Bytes that can be no character become U+FFFD, exactly as if all were decoded at once.
"""

from __future__ import annotations

import codecs

from qwonnx.runtime.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one answer, incrementally. Special tokens have no text; <think> and its like do.

    What is still unfinished when the answer ends is half a character, and is never emitted.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters this token completes."""
        if self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))
