"""The tokenizer: text to token ids, and token ids to bytes.

Qwen's tokenizer is a byte-level BPE: every token is a run of bytes, a character may be cut between tokens, and decoding
is concatenation. This makes incremental decoding exact (detokenizer.py), so other kinds are refused. Only this module
loads a tokenizer.json, for the runtime and for the exporter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import tokenizers
import tokenizers.models
from tokenizers.pre_tokenizers import ByteLevel

from qwonnx.runtime.artifact.strict_json import quoted
from qwonnx.runtime.errors import InvalidRequestError, TokenizerError
from qwonnx.runtime.text.added_tokens import AddedToken, AddedTokens, Piece
from qwonnx.runtime.text.template_text import Span, TemplateText, own_spans, plain

if TYPE_CHECKING:
    from qwonnx.runtime.text.token_bounds import NormalForm, TokenBounds

# A text is encoded by the thread that asks for it. The library's own threads have one queue for all texts: a short
# prompt would wait for every long one. They would also take cores from the model.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

MAX_FILE_BYTES = 128 << 20  # Qwen 3.5's tokenizer.json has 13 to 20 MB, depending on its spacing

# The parts of a byte-level BPE. The library gets no other parts: some abort the process on a few bad bytes (a
# "Precompiled" normalizer allocates as much memory as a number in the file says).
_COMPONENTS: Mapping[str, frozenset[str]] = {
    "model": frozenset({"BPE"}),
    "decoder": frozenset({"ByteLevel"}),
    "normalizer": frozenset({"Sequence", "NFC", "NFD", "NFKC", "NFKD"}),
    "pre_tokenizer": frozenset({"Sequence", "Split", "ByteLevel", "Digits"}),
    "post_processor": frozenset({"Sequence", "ByteLevel", "TemplateProcessing"}),
}
_NEEDED = ("model", "decoder")
_ABSENT = msgspec.Raw(b"null")


class _Model(msgspec.Struct):
    """The checked fields of the model. Only the library parses its vocabulary, 20 MB of text."""

    type: Any = None
    dropout: Any = None


class _Document(msgspec.Struct):
    """The parts of a tokenizer.json that the library gets, each as its text."""

    added_tokens: msgspec.Raw = _ABSENT
    normalizer: msgspec.Raw = _ABSENT
    pre_tokenizer: msgspec.Raw = _ABSENT
    post_processor: msgspec.Raw = _ABSENT
    decoder: msgspec.Raw = _ABSENT
    model: msgspec.Raw = _ABSENT


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text as tokens.

    token_ids: all of them.
    added_at: positions of those that are added tokens, ascending.
    """

    token_ids: list[int]
    added_at: tuple[int, ...]


class Tokenizer:
    """A tokenizer.json, loaded. Safe to use from several threads.

    The library never looks for added tokens: this class finds them where they may be (added_tokens.py), and the library
    encodes the text between them.

    Args:
        source: the text of tokenizer.json.

    Raises:
        TokenizerError: not a tokenizer, or not a byte-level BPE.
    """

    def __init__(self, source: str | bytes) -> None:
        checked = _checked(source)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(checked.source)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises bare Exception; its panics are BaseExceptions
            raise TokenizerError(quoted(str(error))) from error
        if missing := [byte for byte in ByteLevel.alphabet() if self._tokenizer.token_to_id(byte) is None]:
            raise TokenizerError(f"it has no token for {len(missing)} of the 256 bytes")
        # The library caches the tokens of 10,000 words in every thread that encodes: 7 MB per thread for ordinary
        # words, ten times that for long ones. Without the cache, encoding is as fast (English), or a quarter slower
        # (names).
        if isinstance(self._tokenizer.model, tokenizers.models.BPE):
            self._tokenizer.model._resize_cache(0)
        # In the library all added tokens are special, and special tokens are text.
        self._tokenizer.encode_special_tokens = True
        added = {
            token_id: AddedToken(
                token.content,
                token.content in checked.special,
                normalized=token.normalized,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
            )
            for token_id, token in self._tokenizer.get_added_tokens_decoder().items()
        }
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        # Matched literally, never by merging: special tokens, <think>, <tool_call>.
        self.added_token_ids = tuple(sorted(added))
        normalizer = self._tokenizer.normalizer
        self._added = AddedTokens(added, None if normalizer is None else normalizer.normalize_str)
        self._normal_form = checked.normal_form
        self._bytes: dict[int, bytes] = {}
        # Ids from here on are rows that pad the embedding; they have no text.
        self.num_tokens = max(self._tokenizer.get_vocab_size(with_added_tokens=False), *(1 + i for i in added), 0)

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
            raise TokenizerError(f"it is larger than {MAX_FILE_BYTES >> 20} MiB")
        return cls(source)

    @property
    def largest_id(self) -> int:
        """The largest token id; takes time proportional to the vocabulary."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values())

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
        # encode() keeps the GIL while it works: 1.5 s for 1 MiB. encode_batch_fast() releases it, and finds no offsets.
        texts = [piece.text for piece in pieces if piece.token_id is None]
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False) if texts else []
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

        return TokenBounds(self._ordinary_tokens, self._normal_form)

    def _ordinary_tokens(self) -> list[bytes]:
        """The bytes of the model's tokens."""
        # One by one: get_vocab() would keep the GIL for half a second.
        size = self._tokenizer.get_vocab_size(with_added_tokens=False)
        names = (self._tokenizer.id_to_token(token_id) or "" for token_id in range(size))
        return [name.translate(_BYTE_OF_CODE).encode("latin-1", errors="replace") for name in names]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of a whole sequence; bytes that are not UTF-8 become U+FFFD. Ids without a token add nothing."""
        kept = (self.token_bytes(i) for i in token_ids if not (skip_special_tokens and i in self._special))
        return b"".join(kept).decode("utf-8", errors="replace")

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact name ("<|im_end|>"), or None."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def is_special(self, token_id: int) -> bool:
        """True for tokens that structure a conversation and are not part of its text; <think> is not special."""
        return token_id in self._special

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one token, possibly part of a character; empty for an id without a token."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._look_up(token_id)
        return known

    def vocabulary(self, num_tokens: int) -> list[bytes]:
        """token_bytes() of the ids below num_tokens, without caching them."""
        return [self._look_up(token_id) for token_id in range(num_tokens)]

    def _look_up(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else _bytes_of(token)


@dataclass(frozen=True, slots=True)
class _Checked:
    """A checked tokenizer.json.

    source: for the library.
    special: contents of the added tokens that are special.
    normal_form: to which the normaliser brings a text; None if it is several.
    """

    source: bytes
    special: frozenset[str]
    normal_form: NormalForm | None


def _checked(source: str | bytes) -> _Checked:
    """The document for the library: only the allowed parts, each once.

    Truncation and padding, left in a file by a training run, are dropped: they would cut prompts short or pad them.
    """
    try:
        document = msgspec.json.decode(source, type=_Document)
        model = msgspec.json.decode(document.model, type=_Model)
        parts = {name: msgspec.json.decode(getattr(document, name)) for name in _COMPONENTS if name != "model"}
        added = msgspec.json.decode(document.added_tokens, type=list[dict[str, Any]] | None) or []
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise TokenizerError(quoted(str(error))) from error
    for name, allowed in _COMPONENTS.items():
        for kind in [model.type] if name == "model" else _kinds(parts[name]):
            if not (isinstance(kind, str) and kind in allowed) and (kind is not None or name in _NEEDED):
                raise TokenizerError(f"its {name} is of type {quoted(kind)}: a byte-level BPE does not have it")
    if model.dropout is not None:
        raise TokenizerError("its model has a dropout: its tokens would be random")
    # The small parts are encoded again, so the library gets what was checked even if a key appears twice.
    fields = {name: msgspec.json.encode(part) for name, part in parts.items()}
    all_special = [{**token, "special": True} for token in added]
    fields |= {"added_tokens": msgspec.json.encode(all_special), "model": bytes(document.model)}
    fields = {"version": b'"1.0"', "truncation": b"null", "padding": b"null", **fields}
    text = b"{" + b",".join(b'"' + name.encode() + b'":' + part for name, part in fields.items()) + b"}"
    forms = [kind for kind in _kinds(parts["normalizer"]) if kind not in (None, "Sequence")]
    return _Checked(
        text,
        frozenset(str(token.get("content")) for token in added if token.get("special") is True),
        None if len(forms) > 1 else forms[0] if forms else "",
    )


def _kinds(component: Any) -> Iterator[Any]:
    """The types of a part of the tokenizer and of the parts in it; None for one that is missing."""
    pending = [component]
    while pending:
        part = pending.pop()
        if not isinstance(part, dict):
            yield part
            continue
        yield part.get("type", "")  # "" is allowed nowhere
        if part.get("type") == "Sequence":
            pending.extend(inner for value in part.values() if isinstance(value, list) for inner in value)


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


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet, reversed: printable Latin-1 maps to itself, other bytes to U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()
_BYTE_OF_CODE = {ord(character): byte for character, byte in _BYTE_OF_CHARACTER.items()}


def _bytes_of(token: str) -> bytes:
    # An added token is plain text. If it has a character outside the alphabet (a space), its text is used as it is.
    if all(character in _BYTE_OF_CHARACTER for character in token):
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    return token.encode()
