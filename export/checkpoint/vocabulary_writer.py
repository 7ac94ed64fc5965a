"""vocabulary.bin of a tokenizer.json: see runtime/text/vocabulary_file.py for what is in it.

Only a tokenizer that is read in the same way without the library gets one: an ordinary byte-level BPE in a frame that
pieces.py knows. What the tokenizers library gives for each token's own text is asked of the library.
"""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from qwonnx.export.checkpoint.character_classes import character_classes
from qwonnx.export.checkpoint.tokenizer_files import QWEN_SPLIT
from qwonnx.runtime.errors import TokenizerError
from qwonnx.runtime.text.byte_alphabet import CHARACTERS, spelt_bytes
from qwonnx.runtime.text.pieces import UnknownKindError, cutter
from qwonnx.runtime.text.tokenizer import MAX_FILE_BYTES
from qwonnx.runtime.text.tokenizer_frame import TokenizerFrame
from qwonnx.runtime.text.vocabulary_file import (
    CHARACTERS_OF_BLOCK,
    MAX_MERGES,
    MAX_PROBES,
    MAX_TOKEN_BYTES,
    MAX_TOKENS,
    NUM_BLOCKS,
    VocabularyHeader,
    slot_of,
)

_Words = npt.NDArray[np.uint32]


class _Model(msgspec.Struct):
    """A BPE as tokenizer.json has it."""

    vocab: dict[str, int]
    merges: list[tuple[str, str] | str]
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool = False
    ignore_merges: bool = False


@dataclass(frozen=True, slots=True)
class VocabularyTables:
    """The content of a vocabulary.bin but for one bit of each slot.

    header: with the final counts.
    frame, words, classes: sections; those of uint32 by name.
    tokens: the bytes of each, by id.
    places: the slot of each, by id.
    ignores_merges: a piece that is a token is that token, whatever merging it would give.
    """

    header: VocabularyHeader
    frame: bytes
    words: Mapping[str, _Words]
    classes: bytes
    tokens: tuple[bytes, ...]
    places: tuple[int, ...]
    ignores_merges: bool

    @property
    def num_bytes(self) -> int:
        """Of the file."""
        return self.header.file_bytes

    def packed(self, merged: Callable[[bytes], list[int]]) -> bytes:
        """The file.

        Args:
            merged: the library's tokens of a piece.
        """
        slots = np.zeros(self.header.num_slots, np.uint32)
        for token_id, (token, place) in enumerate(zip(self.tokens, self.places, strict=True)):
            is_reached = self.ignores_merges or (_is_text(token) and merged(token) == [token_id])
            slots[place] = slot_of(token_id, is_reached=is_reached)
        sections = {name: words.astype("<u4").tobytes() for name, words in (*self.words.items(), ("slots", slots))}
        sections |= {"frame": self.frame, "text": b"".join(self.tokens), "classes": self.classes}
        made = bytearray(self.num_bytes)
        packed = self.header.packed()
        made[: len(packed)] = packed
        for name, lies in self.header.sections.items():
            assert len(sections[name]) == len(lies), name
            made[lies.start : lies.stop] = sections[name]
        return bytes(made)


def vocabulary_tables(source: bytes) -> VocabularyTables:
    """The tables of a tokenizer.json: 1 s for 250,000 tokens.

    Raises:
        UnknownKindError: it is not of the kind that can be mapped.
        TokenizerError: the runtime would refuse it.
    """
    frame = TokenizerFrame.read(source)
    cutter(frame.parts["pre_tokenizer"])
    try:
        model = msgspec.json.decode(frame.model, type=_Model)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise TokenizerError(str(error)) from error
    if model.unk_token is not None or model.continuing_subword_prefix or model.end_of_word_suffix:
        raise UnknownKindError("its model has an unknown token, a prefix or a suffix")
    if model.byte_fallback:
        raise UnknownKindError("its model falls back to bytes")
    tokens = _tokens(model.vocab)
    added = _added_tokens(frame, model.vocab)
    merges = _merges(model)
    num_slots = 1 << (2 * len(tokens) - 1).bit_length()
    places, max_probes = _places(tokens, num_slots)
    class_blocks, classes = _classes(frame)
    words = {
        "class_blocks": class_blocks,
        "byte_ids": np.array([model.vocab[character] for character in CHARACTERS], np.uint32),
        "starts": np.cumsum([0, *map(len, tokens)], dtype=np.uint32),
        "first_merges": np.searchsorted(merges[:, 0], np.arange(len(tokens) + 1)).astype(np.uint32),
        "rights": merges[:, 1].astype(np.uint32),
        "ranks": merges[:, 2].astype(np.uint32),
        "results": merges[:, 3].astype(np.uint32),
    }
    parts = dict(sorted(frame.parts.items()))
    written = msgspec.json.encode({**parts, "added_tokens": added, "model": {"type": "BPE"}})
    header = VocabularyHeader(
        num_tokens=len(tokens),
        num_merges=len(merges),
        num_slots=num_slots,
        max_probes=max_probes,
        longest=max(map(len, tokens)),
        num_class_blocks=len(classes),
        source_sha256=hashlib.sha256(source).digest(),
        source_bytes=len(source),
        text_bytes=sum(map(len, tokens)),
        frame_bytes=len(written),
    )
    if header.file_bytes > MAX_FILE_BYTES:
        raise UnknownKindError("it is too large")
    return VocabularyTables(header, written, words, classes.tobytes(), tokens, places, model.ignore_merges)


def _classes(frame: TokenizerFrame) -> tuple[_Words, npt.NDArray[np.uint8]]:
    """The block of each 256 characters, and uint8 [blocks, 256]; none if the pre-tokenizer is not Qwen 3.5's."""
    if cutter(frame.parts["pre_tokenizer"]) != {"type": "Sequence", "pretokenizers": [QWEN_SPLIT]}:
        return np.zeros(0, np.uint32), np.zeros((0, CHARACTERS_OF_BLOCK), np.uint8)
    blocks, numbers = np.unique(
        character_classes().reshape(NUM_BLOCKS, CHARACTERS_OF_BLOCK), axis=0, return_inverse=True
    )
    return numbers.reshape(-1).astype(np.uint32), blocks


def _tokens(vocab: Mapping[str, int]) -> tuple[bytes, ...]:
    """The bytes of each token, by id."""
    if len(vocab) > MAX_TOKENS or sorted(vocab.values()) != list(range(len(vocab))):
        raise UnknownKindError("its ids have gaps")
    names = sorted(vocab, key=vocab.__getitem__)
    tokens = tuple(spelt for name in names if (spelt := spelt_bytes(name)))
    if len(tokens) < len(names):
        raise UnknownKindError("it has tokens that are not spelt in the byte-level alphabet")
    if any(character not in vocab for character in CHARACTERS):
        raise TokenizerError("it has no token for some of the 256 bytes")
    if max(map(len, tokens)) > MAX_TOKEN_BYTES:
        raise UnknownKindError(f"it has a token of more than {MAX_TOKEN_BYTES} bytes")
    return tokens


def _added_tokens(frame: TokenizerFrame, vocab: Mapping[str, int]) -> list[dict[str, Any]]:
    """The added tokens, each with the id that it states, which must be the one that the library gives it."""
    found: list[dict[str, Any]] = []
    following = len(vocab)
    for token in frame.added:
        content = token.get("content")
        if not isinstance(content, str) or not content or any(content == one["content"] for one in found):
            raise UnknownKindError("an added token is empty or there twice")
        known = vocab.get(content)
        token_id, following = (following, following + 1) if known is None else (known, following)
        if token.get("id") != token_id:
            raise UnknownKindError("an added token states another id than it gets")
        flags = {name: token.get(name) for name in ("special", "normalized", "single_word", "lstrip", "rstrip")}
        if not all(isinstance(flag, bool) for flag in flags.values()):
            raise UnknownKindError("an added token does not say how it is matched")
        found.append({"id": token_id, "content": content, **flags})
    return found


def _merges(model: _Model) -> npt.NDArray[np.int64]:
    """[merges, 4]: left, right, rank, result; sorted by left, then right. Of equal pairs the library keeps the last."""
    if len(model.merges) > MAX_MERGES:
        raise UnknownKindError("it has too many merges")
    vocab, numbers = model.vocab, array("q")
    try:
        for rank, (left, right) in enumerate(_pairs(model.merges)):
            numbers.extend((vocab[left], vocab[right], rank, vocab[left + right]))
    except (KeyError, ValueError) as error:
        raise TokenizerError("a merge is not of two tokens that make a token") from error
    table = np.array(numbers, np.int64).reshape(-1, 4)
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    is_last = np.ones(len(table), bool)
    is_last[:-1] = (table[1:, :2] != table[:-1, :2]).any(axis=1)
    return table[is_last]


def _pairs(merges: list[tuple[str, str] | str]) -> Iterator[tuple[str, str]]:
    for merge in merges:
        if isinstance(merge, str):
            if merge.startswith("#version"):
                continue
            left, right = merge.split(" ")
            yield left, right
        else:
            yield merge


def _places(tokens: tuple[bytes, ...], num_slots: int) -> tuple[tuple[int, ...], int]:
    """The slot of each token in the hash table, and the most slots that a search looks at."""
    taken, places, most = bytearray(num_slots), [], 1
    for token in tokens:
        first = zlib.crc32(token) & (num_slots - 1)
        place = first
        while taken[place]:
            place = (place + 1) & (num_slots - 1)
        taken[place] = True
        places.append(place)
        most = max(most, ((place - first) & (num_slots - 1)) + 1)
    if most > MAX_PROBES:
        raise UnknownKindError("its tokens collide")
    return tuple(places), most


def _is_text(token: bytes) -> bool:
    """Whether it can be a piece: pieces are cut between characters."""
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
