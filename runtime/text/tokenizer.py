"""The artifact's tokenizer: text to token ids, and each token id to the bytes it stands for.

Qwen's tokenizer is a byte-level BPE: every token is a run of bytes, characters may be cut between tokens, and decoding
is concatenation. That is what makes incremental decoding exact (detokenizer.py), so any other kind is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers
import tokenizers.decoders
import tokenizers.models

from qwonnx.runtime.errors import TokenizerError


class Tokenizer:
    """A tokenizer.json, loaded. Safe to use from several threads.

    Args:
        source: the text of tokenizer.json.

    Raises:
        TokenizerError: not a tokenizer, or not a byte-level one.
    """

    def __init__(self, source: str) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(source)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception, and its panics are not even that
            raise TokenizerError(f"tokenizer.json is malformed ({error}): export the checkpoint again") from error
        # Some files carry the settings of a training run, which would cut prompts short, or fill them up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # The library remembers the tokens of ten thousand words in every thread that encodes: 7 MB a thread of ordinary
        # words, ten times that of long ones. Encoding is as fast without (English), or a quarter slower (names).
        if isinstance(self._tokenizer.model, tokenizers.models.BPE):
            self._tokenizer.model._resize_cache(0)
        decoder = self._tokenizer.decoder
        if not isinstance(decoder, tokenizers.decoders.ByteLevel):
            kind = type(decoder).__name__
            raise TokenizerError(f"tokenizer.json has a decoder of type {kind}: only ByteLevel ones are supported")
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        # Matched literally, never by merging: the special ones, <think>, <tool_call>.
        self.added_token_ids = tuple(sorted(added))
        self._bytes: dict[int, bytes] = {}
        # Ids from here on are rows that pad the embedding; no text stands for them.
        self.num_tokens = max(self._tokenizer.get_vocab_size(with_added_tokens=False), *(1 + i for i in added), 0)

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        return cls(path.read_text(encoding="utf-8"))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Special tokens written out in it, as a chat template does, become those tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of a whole sequence; bytes that are not UTF-8 become U+FFFD. Ids without a token add nothing."""
        kept = (self.token_bytes(i) for i in token_ids if not (skip_special_tokens and i in self._special))
        return b"".join(kept).decode("utf-8", errors="replace")

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact name ("<|im_end|>"), None if there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def is_special(self, token_id: int) -> bool:
        """True for tokens that structure a conversation and are no part of its text; <think> is not one of them."""
        return token_id in self._special

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one token, possibly part of a character; empty for an id without a token."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._look_up(token_id)
        return known

    def vocabulary(self, num_tokens: int) -> list[bytes]:
        """token_bytes() of the ids below num_tokens, without keeping them."""
        return [self._look_up(token_id) for token_id in range(num_tokens)]

    def _look_up(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else _bytes_of(token)


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet, reversed: printable Latin-1 stands for itself, other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _bytes_of(token: str) -> bytes:
    # An added token is plain text; where that has a character outside the alphabet (a space), it stands as it is.
    if all(character in _BYTE_OF_CHARACTER for character in token):
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()
