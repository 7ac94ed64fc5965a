"""vocabulary.bin: the ordinary tokens of a tokenizer.json and its merges, in a form that is used where it lies.

    header       _HEADER: what it is, sizes of the sections, sha256 and size of the tokenizer.json it was made from
    frame        JSON: that tokenizer.json without vocabulary and merges; its added tokens have their final ids
    byte_ids     uint32 [256]: the token of each byte
    starts       uint32 [num_tokens + 1]: where the bytes of each token begin in `text`, ascending
    text         uint8 [text_bytes]: the bytes of all tokens, by id
    first_merges uint32 [num_tokens + 1]: where the merges of each left token begin, ascending
    rights       uint32 [num_merges]: the right token of each merge, ascending for one left token
    ranks        uint32 [num_merges]: the lowest rank merges first
    results      uint32 [num_merges]: the token that a merge makes
    slots        uint32 [num_slots], a hash table of the tokens by their bytes: 0 for an empty one, else slot_of(). A
                 token lies at crc32(bytes) % num_slots or in one of the next max_probes - 1, before an empty one.
    class_blocks uint32 [0x1100]: the block of each 256 characters; empty if the pre-tokenizer is not Qwen 3.5's
    classes      uint8 [num_class_blocks, 256]: what that pre-tokenizer asks of each character, see CharacterClass

So merges are sorted by the 64-bit key (left, right), whose left half is written once. Numbers are little-endian,
sections begin at multiples of 8, and their places follow from the header's counts: a file can name no place outside.

A file is untrusted. open() compares its size and its counts, and check() every number in it that leads to a place. The
manifest's sha256 is compared by the caller, who knows the artifact.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
import sys
import zlib
from itertools import pairwise
from pathlib import Path

from msgspec import Struct

MAGIC = b"qwonnxvo"
VERSION = 1
MAX_TOKENS = 1 << 24
MAX_MERGES = 1 << 26
MAX_PROBES = 1 << 12
MAX_TOKEN_BYTES = 1 << 16
MAX_FRAME_BYTES = 16 << 20

CHARACTERS_OF_BLOCK = 256
NUM_BLOCKS = (sys.maxunicode + 1) // CHARACTERS_OF_BLOCK

_HEADER = struct.Struct("<8s7I32s4Q")
_ALIGNMENT = 8
_WORD = 4


class CharacterClass(enum.IntFlag):
    """What Qwen 3.5's pre-tokenizer asks of a character: its bits, and in the upper three a place in a contraction.

    WORD: a letter or a mark. SINGLE: s, t, m and d. FIRST: r and v, before E. DOUBLE: l, twice. In either case.
    """

    WORD = 1
    LETTER = 2
    NUMBER = 4
    SPACE = 8
    BREAK = 16
    SINGLE = 1 << 5
    FIRST = 2 << 5
    E = 3 << 5
    DOUBLE = 4 << 5


class VocabularyFileError(Exception):
    """A vocabulary.bin that cannot be used; the message is a phrase. The runtime falls back to tokenizer.json."""


class VocabularyHeader(Struct, frozen=True):
    """The numbers at the beginning of the file.

    num_slots is a power of two. longest is the bytes of the longest token. source_sha256 and source_bytes are those of
    tokenizer.json.
    """

    num_tokens: int
    num_merges: int
    num_slots: int
    max_probes: int
    longest: int
    num_class_blocks: int
    source_sha256: bytes
    source_bytes: int
    text_bytes: int
    frame_bytes: int

    @property
    def sections(self) -> dict[str, range]:
        """Where each section lies, in bytes."""
        lengths = {
            "frame": self.frame_bytes,
            "byte_ids": 256 * _WORD,
            "starts": (self.num_tokens + 1) * _WORD,
            "text": self.text_bytes,
            "first_merges": (self.num_tokens + 1) * _WORD,
            "rights": self.num_merges * _WORD,
            "ranks": self.num_merges * _WORD,
            "results": self.num_merges * _WORD,
            "slots": self.num_slots * _WORD,
            "class_blocks": NUM_BLOCKS * _WORD if self.num_class_blocks else 0,
            "classes": self.num_class_blocks * CHARACTERS_OF_BLOCK,
        }
        places, at = {}, _HEADER.size
        for name, length in lengths.items():
            at = -(-at // _ALIGNMENT) * _ALIGNMENT
            places[name] = range(at, at + length)
            at += length
        return places

    @property
    def file_bytes(self) -> int:
        return self.sections["classes"].stop

    def packed(self) -> bytes:
        return _HEADER.pack(
            MAGIC,
            VERSION,
            self.num_tokens,
            self.num_merges,
            self.num_slots,
            self.max_probes,
            self.longest,
            self.num_class_blocks,
            self.source_sha256,
            self.source_bytes,
            self.text_bytes,
            self.frame_bytes,
            self.file_bytes,
        )

    @classmethod
    def read(cls, start: bytes, file_bytes: int) -> VocabularyHeader:
        """The header of a file of this size.

        Raises:
            VocabularyFileError: it is not one of this version, or its sizes are not those of the file.
        """
        if len(start) < _HEADER.size or not start.startswith(MAGIC):
            raise VocabularyFileError("it is not a vocabulary file")
        _, version, *fields, stated_bytes = _HEADER.unpack_from(start)
        if version != VERSION:
            raise VocabularyFileError(f"its version is {version}, and this runtime reads {VERSION}")
        header = cls(*fields)
        if not (
            256 <= header.num_tokens <= MAX_TOKENS
            and header.num_merges <= MAX_MERGES
            and 1 <= header.max_probes <= MAX_PROBES
            and 1 <= header.longest <= MAX_TOKEN_BYTES
            and header.text_bytes <= header.num_tokens * header.longest
            and header.frame_bytes <= MAX_FRAME_BYTES
            and header.num_tokens < header.num_slots <= 4 * MAX_TOKENS
            and header.num_slots & (header.num_slots - 1) == 0
            and header.num_class_blocks <= NUM_BLOCKS
        ):
            raise VocabularyFileError("its counts are out of bounds")
        if not header.file_bytes == stated_bytes == file_bytes:
            raise VocabularyFileError(f"it has {file_bytes} bytes and its header says {header.file_bytes}")
        return header


def slot_of(token_id: int, *, is_reached: bool) -> int:
    """An entry of the hash table. is_reached: merging the bytes of the token's text gives this token alone."""
    return (token_id + 1) << 1 | is_reached


class VocabularyFile:
    """A mapped vocabulary.bin.

    Attributes: the header, and memoryviews of uint32 named as the sections; text and frame by methods.
    """

    def __init__(self, mapped: mmap.mmap, header: VocabularyHeader) -> None:
        self._mapped = mapped
        self.header = header
        self._places = header.sections
        self._text_at = self._places["text"].start
        view = memoryview(mapped)
        self.byte_ids, self.starts, self.first_merges, self.rights, self.ranks, self.results, self.slots = (
            view[self._places[name].start : self._places[name].stop].cast("I")
            for name in ("byte_ids", "starts", "first_merges", "rights", "ranks", "results", "slots")
        )

    @classmethod
    def open(cls, path: Path) -> VocabularyFile:
        """Map a file and check its sizes; the time does not depend on its size.

        Raises:
            VocabularyFileError: it cannot be mapped or used.
        """
        if sys.byteorder != "little":
            raise VocabularyFileError("this processor is big-endian")
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < _HEADER.size:
                    raise VocabularyFileError(f"it has only {size} bytes")
                mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise VocabularyFileError(f"it cannot be mapped: {error}") from error
        return cls(mapped, VocabularyHeader.read(mapped[: _HEADER.size], len(mapped)))

    def check(self) -> None:
        """Compare every number that leads to a place with its bounds: 2 ms for 250,000 tokens.

        Raises:
            VocabularyFileError: one is out of bounds.
        """
        import numpy as np  # not needed to open a file

        header = self.header
        words = {
            name: np.frombuffer(self._mapped, np.uint32, len(place) // _WORD, place.start)
            for name, place in self._places.items()
            if name not in ("frame", "text", "classes")
        }
        for name, total in (("starts", header.text_bytes), ("first_merges", header.num_merges)):
            places = words[name]
            if places[0] != 0 or places[-1] != total or (places[1:] < places[:-1]).any():
                raise VocabularyFileError(f"its {name} do not ascend to {total}")
        lengths = np.diff(words["starts"])
        if not (lengths.min() >= 1 and lengths.max() <= header.longest):
            raise VocabularyFileError("a token is empty, or longer than its header says")
        for name in ("byte_ids", "rights", "results"):
            if words[name].size and int(words[name].max()) >= header.num_tokens:
                raise VocabularyFileError(f"its {name} have a token that it does not have")
        blocks = words["class_blocks"]
        if blocks.size and int(blocks.max()) >= header.num_class_blocks:
            raise VocabularyFileError("its characters have a class that it does not have")
        if int(words["slots"].max()) >> 1 > header.num_tokens:
            raise VocabularyFileError("its slots have a token that it does not have")
        del words, places, blocks
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)  # pages come again, from memory, when they are used

    def is_whole(self) -> bool:
        """Whether the file still has its size: a page beyond the end of a file that was cut ends the process."""
        try:
            return self._mapped.size() >= self.header.file_bytes
        except OSError:
            return True  # only the size is not known; the mapping stays

    @property
    def frame(self) -> bytes:
        return self._section("frame")

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of a token that the file has."""
        at = self._text_at
        return self._mapped[at + self.starts[token_id] : at + self.starts[token_id + 1]]

    def tokens(self) -> list[bytes]:
        """The bytes of all tokens, by id: 40 ms for 250,000 tokens."""
        text = self._section("text")
        return [text[start:end] for start, end in pairwise(self.starts.tolist())]

    def find(self, token: bytes, *, reached: bool) -> int | None:
        """The id of the token with these bytes, or None. reached: only if merging them gives it; see slot_of()."""
        header = self.header
        if len(token) > header.longest:
            return None
        first = zlib.crc32(token)
        for place in range(first, first + header.max_probes):
            slot = self.slots[place & (header.num_slots - 1)]
            if not slot:
                return None
            token_id = (slot >> 1) - 1
            if self.token_bytes(token_id) == token:
                return token_id if slot & 1 or not reached else None
        return None

    def addresses(self) -> dict[str, int]:
        """Where each section lies in memory, as long as this object lives."""
        import numpy as np

        base = int(np.frombuffer(self._mapped, np.uint8).ctypes.data)
        return {name: base + place.start for name, place in self._places.items()}

    def _section(self, name: str) -> bytes:
        place = self._places[name]
        return self._mapped[place.start : place.stop]
