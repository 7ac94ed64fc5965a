"""A vocabulary that the `tokenizers` library holds: it parses all of tokenizer.json, 1 s for 250,000 tokens.

In this package only this module and pieces.py call the library.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
import tokenizers.models
from tokenizers.pre_tokenizers import ByteLevel

from qwonnx.runtime.artifact.strict_json import quoted
from qwonnx.runtime.errors import TokenizerError
from qwonnx.runtime.text.added_tokens import AddedToken
from qwonnx.runtime.text.byte_alphabet import BYTE_OF_CODE, name_of, token_bytes
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame
from qwonnx.runtime.text.vocabulary import Tokens

# A text is encoded by the thread that asks for it. The library's own threads have one queue for all texts: a short
# prompt would wait for every long one. They would also take cores from the model.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def library_tokenizer(source: bytes) -> Any:
    """The library's tokenizer of a document that was checked.

    Raises:
        TokenizerError: the library refuses it.
    """
    try:
        return tokenizers.Tokenizer.from_buffer(source)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception; its panics are BaseExceptions
        raise TokenizerError(quoted(str(error))) from error


class LibraryVocabulary:
    """See vocabulary.py.

    The library never looks for added tokens: the tokenizer finds them where they may be (added_tokens.py), and the
    library encodes the text between them.

    Raises:
        TokenizerError: the library refuses the document, or a byte has no token.
    """

    def __init__(self, frame: TokenizerFrame) -> None:
        self._tokenizer = library_tokenizer(frame.for_library())
        if missing := [byte for byte in ByteLevel.alphabet() if self._tokenizer.token_to_id(byte) is None]:
            raise TokenizerError(f"it has no token for {len(missing)} of the 256 bytes")
        # The library caches the tokens of 10,000 words in every thread that encodes: 7 MB per thread for ordinary
        # words, ten times that for long ones. Without the cache, encoding is as fast (English), or a quarter slower
        # (names).
        if isinstance(self._tokenizer.model, tokenizers.models.BPE):
            self._tokenizer.model._resize_cache(0)
        # In the library all added tokens are special, and special tokens are text.
        self._tokenizer.encode_special_tokens = True
        special = frame.special
        self.added: Mapping[int, AddedToken] = {
            token_id: AddedToken(
                token.content,
                token.content in special,
                normalized=token.normalized,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
            )
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        normalizer = self._tokenizer.normalizer
        self.normalised: Callable[[str], str] | None = None if normalizer is None else normalizer.normalize_str
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=False)

    @property
    def largest_id(self) -> int:
        ids: Mapping[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return max(ids.values())

    def encode(self, texts: Sequence[str]) -> Sequence[Tokens]:
        # encode() keeps the GIL while it works: 1.5 s for 1 MiB. encode_batch_fast() releases it, and finds no offsets.
        found: Sequence[Tokens] = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return found

    def merged(self, piece: bytes) -> list[int]:
        """The tokens of a piece as it stands: it is neither normalised nor cut."""
        return [token.id for token in self._tokenizer.model.tokenize(name_of(piece))]

    def token_id(self, name: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(name)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        name = self._tokenizer.id_to_token(token_id)
        return b"" if name is None else token_bytes(name)

    def tokens(self, num_tokens: int) -> list[bytes]:
        return [self.token_bytes(token_id) for token_id in range(num_tokens)]

    def ordinary_tokens(self) -> list[bytes]:
        # One by one: get_vocab() would keep the GIL for half a second.
        names = (self._tokenizer.id_to_token(token_id) or "" for token_id in range(self.size))
        return [name.translate(BYTE_OF_CODE).encode("latin-1", errors="replace") for name in names]
