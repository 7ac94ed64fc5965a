"""A vocabulary that is mapped from vocabulary.bin: ready in milliseconds, and shared with other processes.

Texts are normalised and cut by the library (pieces.py), and pieces are merged over the map in Python. Where the native
library is installed it merges, and cuts too if the pre-tokenizer is Qwen 3.5's. What neither does well is left to the
library's own vocabulary, which is then loaded: pieces that are too long, and everything once the file proves damaged.
"""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

import msgspec
from msgspec import Struct

from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.text.added_tokens import AddedToken
from qwonnx.runtime.text.byte_alphabet import spelt_bytes, token_bytes
from qwonnx.runtime.text.native_merging import NativePieceMerging
from qwonnx.runtime.text.piece_merging import LongPieceError, PieceMerging
from qwonnx.runtime.text.pieces import Pieces
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame
from qwonnx.runtime.text.vocabulary import Tokens, Vocabulary
from qwonnx.runtime.text.vocabulary_file import MAX_TOKENS, VocabularyFile, VocabularyFileError

logger = logging.getLogger(__name__)


class MappedTokens(Struct, frozen=True):
    """See vocabulary.py."""

    found: array[int]

    def __len__(self) -> int:
        return len(self.found)

    @property
    def ids(self) -> list[int]:
        return self.found.tolist()


class FrameToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An added token in the frame of a vocabulary.bin."""

    id: int
    content: str
    special: bool
    normalized: bool
    single_word: bool
    lstrip: bool
    rstrip: bool

    @property
    def token(self) -> AddedToken:
        return AddedToken(
            self.content,
            self.special,
            normalized=self.normalized,
            single_word=self.single_word,
            lstrip=self.lstrip,
            rstrip=self.rstrip,
        )


class MappedVocabulary:
    """See vocabulary.py.

    Args:
        file: opened and checked.
        frame: the file's own, checked.
        library: loads the same vocabulary from tokenizer.json, at most once.

    Raises:
        VocabularyFileError: the frame's added tokens are malformed.
        UnknownKindError, TokenizerError: the frame has a part that the library or this module does not know.
    """

    def __init__(self, file: VocabularyFile, frame: TokenizerFrame, library: Callable[[], Vocabulary]) -> None:
        try:
            added = msgspec.convert(frame.added, tuple[FrameToken, ...])
        except msgspec.ValidationError as error:
            raise VocabularyFileError(f"its added tokens are malformed: {error}") from error
        if not all(0 <= token.id < 2 * MAX_TOKENS for token in added):
            raise VocabularyFileError("an added token's id is out of bounds")
        self._file = file
        self._pieces = Pieces(frame)
        self._library = library
        self._library_vocabulary: Vocabulary | None = None
        self._lock = threading.Lock()
        self._is_damaged = False
        self.added: Mapping[int, AddedToken] = {token.id: token.token for token in added}
        self._ids = {token.content: token_id for token_id, token in self.added.items()}
        self.normalised = self._pieces.normalised
        self.size = file.header.num_tokens

    @property
    def largest_id(self) -> int:
        return max(self.size - 1, *self.added, 0)

    def encode(self, texts: Sequence[str]) -> Sequence[Tokens]:
        if self._is_usable():
            try:
                return self._merged(texts)
            except VocabularyFileError as error:
                self._give_up(str(error))
        return self._loaded().encode(texts)

    def token_id(self, name: str) -> int | None:
        added = self._ids.get(name)
        if added is not None:
            return added
        if not self._is_usable():
            return self._loaded().token_id(name)
        spelt = spelt_bytes(name)
        return self._file.find(spelt, reached=False) if spelt else None

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self.added:
            return token_bytes(self.added[token_id].content)
        if not 0 <= token_id < self.size:
            return b""
        if not self._is_usable():
            return self._loaded().token_bytes(token_id)
        return self._file.token_bytes(token_id)

    def ordinary_tokens(self) -> list[bytes]:
        return self._file.tokens() if self._is_usable() else self._loaded().ordinary_tokens()

    def tokens(self, num_tokens: int) -> list[bytes]:
        found = self.ordinary_tokens()[:num_tokens]
        found += [b""] * (num_tokens - len(found))
        for token_id in self.added:
            if token_id < num_tokens:
                found[token_id] = self.token_bytes(token_id)
        return found

    def _merged(self, texts: Sequence[str]) -> list[Tokens]:
        native = self._native
        if native is not None and native.can_cut:
            work = [partial(native.encode, self._pieces.normalise(text)) for text in texts]
        else:
            merging = native or PieceMerging(self._file)
            work = [partial(merging.tokens, cut) for cut in self._pieces.cut(texts)]
        return [self._or_loaded(text, merged) for text, merged in zip(texts, work, strict=True)]

    def _or_loaded(self, text: str, merged: Callable[[], array[int]]) -> Tokens:
        """The merged tokens of a text, or those of the library's vocabulary if a piece is too long."""
        try:
            return MappedTokens(merged())
        except LongPieceError:
            return self._loaded().encode([text])[0]

    @cached_property
    def _native(self) -> NativePieceMerging | None:
        try:
            return NativePieceMerging(self._file)
        except NativeKernelsError:
            return None  # a session says so where it matters

    def _is_usable(self) -> bool:
        if not self._is_damaged and not self._file.is_whole():
            self._give_up("it was cut")
        return not self._is_damaged

    def _give_up(self, reason: str) -> None:
        with self._lock:
            if self._is_damaged:
                return
            self._is_damaged = True
        logger.warning("vocabulary.bin is not used any more (%s): copy the artifact again", reason)

    def _loaded(self) -> Vocabulary:
        with self._lock:
            if self._library_vocabulary is None:
                self._library_vocabulary = self._library()
            return self._library_vocabulary
