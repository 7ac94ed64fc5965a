"""The tokenizer: text to token ids, and token ids to bytes.

Qwen's tokenizer is a byte-level BPE: every token is a run of bytes, a character may be cut between tokens, and decoding
is concatenation. This makes incremental decoding exact (detokenizer.py), so other kinds are refused. Added tokens are
found here; a vocabulary (vocabulary.py) encodes the text between them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from qwonnx.runtime.errors import InvalidRequestError, TokenizerError
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.text.added_tokens import AddedTokens, Piece
from qwonnx.runtime.text.library_vocabulary import LibraryVocabulary
from qwonnx.runtime.text.template_text import Span, TemplateText, own_spans, plain
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame
from qwonnx.runtime.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from qwonnx.runtime.text.token_bounds import TokenBounds

MAX_FILE_BYTES = 128 << 20  # Qwen 3.5's tokenizer.json has 13 to 20 MB, depending on its spacing


class EncodedText(Struct, frozen=True):
    """A text as tokens.

    token_ids: all of them.
    added_at: positions of those that are added tokens, ascending.
    """

    token_ids: list[int]
    added_at: tuple[int, ...]


class Tokenizer:
    """A tokenizer.json, loaded. Safe to use from several threads.

    Args:
        source: the text of tokenizer.json.
        vocabulary: makes the vocabulary of the checked text; by default the library does.

    Raises:
        TokenizerError: not a tokenizer, or not a byte-level BPE.
    """

    def __init__(
        self, source: str | bytes, vocabulary: Callable[[TokenizerFrame], Vocabulary] = LibraryVocabulary
    ) -> None:
        frame = TokenizerFrame.read(source)
        self._vocabulary = vocabulary(frame)
        added = self._vocabulary.added
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        # Matched literally, never by merging: special tokens, <think>, <tool_call>.
        self.added_token_ids = tuple(sorted(added))
        self._added = AddedTokens(added, self._vocabulary.normalised)
        self._normal_form = frame.normal_form
        self._bytes: dict[int, bytes] = {}
        # Ids from here on are rows that pad the embedding; they have no text.
        self.num_tokens = max(self._vocabulary.size, *(1 + i for i in added), 0)

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """Load a tokenizer.json.

        Raises:
            TokenizerError: as above; or the file cannot be read, or is too large.
        """
        try:
            with path.open("rb") as file:
                source = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise TokenizerError(error.strerror or str(error)) from error
        if len(source) > MAX_FILE_BYTES:
            raise TokenizerError(f"it is larger than {bytes_text(MAX_FILE_BYTES)}")
        return cls(source)

    @property
    def largest_id(self) -> int:
        """The largest token id; takes time proportional to the vocabulary."""
        return self._vocabulary.largest_id

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Special tokens written out in it become those tokens, whoever wrote it."""
        return self._encoded(self._added.pieces(_without_surrogates(text), [Span(0, len(text))])).token_ids

    def encode_chat(self, text: TemplateText, at_most: int | None = None) -> EncodedText:
        """Tokens of a chat template's output; only what the template wrote becomes an added token.

        Releases the GIL. Time and memory are proportional to the text.

        Args:
            text: output of a template.
            at_most: refuse a text that surely has more tokens, before the work.

        Raises:
            InvalidRequestError: it has more tokens than at_most.
        """
        pieces = self._added.pieces(_without_surrogates(text), own_spans(text))
        if at_most is not None and len(text) > at_most:
            least = sum(1 if piece.token_id is not None else self._bounds.fewest(piece.text) for piece in pieces)
            if least > at_most:
                raise _too_long(f"at least {least}", at_most)
        return self._encoded(pieces, at_most)

    def _encoded(self, pieces: Sequence[Piece], at_most: int | None = None) -> EncodedText:
        texts = [piece.text for piece in pieces if piece.token_id is None]
        found = self._vocabulary.encode(texts) if texts else []
        count = len(pieces) - len(texts) + sum(map(len, found))
        if at_most is not None and count > at_most:
            raise _too_long(str(count), at_most)  # before the ids become objects, which needs the GIL
        encodings = iter(found)
        token_ids: list[int] = []
        added_at: list[int] = []
        for piece in pieces:
            if piece.token_id is None:
                token_ids += next(encodings).ids
            else:
                added_at.append(len(token_ids))
                token_ids.append(piece.token_id)
        return EncodedText(token_ids, tuple(added_at))

    @cached_property
    def _bounds(self) -> TokenBounds:
        from qwonnx.runtime.text.token_bounds import TokenBounds  # numpy, without which a plan reads a tokenizer

        return TokenBounds(self._vocabulary.ordinary_tokens, self._normal_form)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of a whole sequence; bytes that are not UTF-8 become U+FFFD. Ids without a token add nothing."""
        kept = (self.token_bytes(i) for i in token_ids if not (skip_special_tokens and i in self._special))
        return b"".join(kept).decode("utf-8", errors="replace")

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact name ("<|im_end|>"), or None."""
        return self._vocabulary.token_id(token)

    def is_special(self, token_id: int) -> bool:
        """True for tokens that structure a conversation and are not part of its text; <think> is not special."""
        return token_id in self._special

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one token, possibly part of a character; empty for an id without a token."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._vocabulary.token_bytes(token_id)
        return known

    def vocabulary(self, num_tokens: int) -> list[bytes]:
        """token_bytes() of the ids below num_tokens, without caching them."""
        return self._vocabulary.tokens(num_tokens)


def _too_long(count: str, at_most: int) -> InvalidRequestError:
    message = f"the prompt has {count} tokens and at most {at_most} fit: shorten it"
    return InvalidRequestError(message, "prompt", "context_length_exceeded")


def _without_surrogates(text: str) -> str:
    """A text that can be written as UTF-8: JSON may spell half of a surrogate pair, which is no character."""
    text = plain(text)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in text)
    return text
