"""Incremental decoding of tokens to text, in whole characters.

Tokens are runs of bytes (tokenizer.py), so they form a stream of UTF-8: bytes of an unfinished character wait for the
rest. Invalid bytes become U+FFFD, exactly as if all bytes were decoded at once.
"""

from __future__ import annotations

import codecs

from qwonnx.runtime.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of one answer, incrementally. Special tokens have no text; <think> and similar tokens have.

    An unfinished character at the end of the answer is never emitted.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters this token completes."""
        if self._tokenizer.is_special(token_id):
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))
