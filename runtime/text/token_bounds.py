"""A lower bound on the tokens of a text, from the vocabulary and a count of bytes: no text is encoded.

A token is a run of bytes. Let a token of the vocabulary have at most k bytes of a class (letters, digits, ...): n bytes
of the class need n / k tokens. The same holds for neighbours of two classes, such as a letter before a space: of n such
places at most k lie in each token, and one lies between two tokens. Qwen's words end before a space (k = 0), so every
word needs a token: the bound of English text is three quarters of its tokens.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np
import numpy.typing as npt

NormalForm = Literal["", "NFC", "NFD", "NFKC", "NFKD"]  # "": texts stay as they are

_LETTER, _DIGIT, _SPACE, _BREAK, _OTHER, _BEYOND = range(6)  # classes of bytes; _BEYOND: not ASCII
_CLASSES = 6
_SHORT = 4096  # characters; shorter texts are not worth a count
_PART = 1 << 18  # characters that are counted at once, for bounded memory and short holds of the GIL
# Normalisation makes at most 4 bytes beyond ASCII one byte (a mathematical letter by NFKC), 9 to 3 by NFC (Hangul).
_SHRINKS = 4
_ACROSS = 9  # bytes at the edge of a part that may melt into the next part's first character


def _class_of_byte() -> npt.NDArray[np.uint8]:
    table = np.full(256, _OTHER, np.uint8)
    table[0x80:] = _BEYOND
    for first, last, kind in ((0x41, 0x5A, _LETTER), (0x61, 0x7A, _LETTER), (0x30, 0x39, _DIGIT), (9, 13, _BREAK)):
        table[first : last + 1] = kind
    table[0x20] = _SPACE
    return table


_CLASS_OF_BYTE = _class_of_byte()


@dataclass(frozen=True, slots=True)
class _Counts:
    """Bytes of each class, int64 [6], and neighbours of two classes, int64 [6, 6], of a text or the most of a token."""

    classes: npt.NDArray[np.int64]
    neighbours: npt.NDArray[np.int64]
    num_bytes: int


class TokenBounds:
    """The bound of one vocabulary. The vocabulary is counted when the first long text comes: 0.3 s for 250,000 tokens.

    Args:
        tokens: returns the bytes of each token.
        normal_form: of Unicode, to which texts are brought first; None if they are normalised otherwise.
    """

    def __init__(self, tokens: Callable[[], Sequence[bytes]], normal_form: NormalForm | None) -> None:
        self._tokens = tokens
        self._normal_form = normal_form
        self._most: _Counts | None = None
        self._lock = Lock()

    def fewest(self, text: str) -> int:
        """A number of tokens that the text certainly has; 0 for short texts."""
        if len(text) < _SHORT:
            return 0
        with self._lock:
            most = self._most = self._most or _most_of_a_token(self._tokens())
        found = self._counted(text)
        per_token = [_ceil(found.num_bytes, most.num_bytes), *map(_ceil, found.classes, most.classes)]
        apart = most.neighbours == 0
        pairs = (found.neighbours[~apart] + 1 + most.neighbours[~apart]) // (most.neighbours[~apart] + 1)
        return int(max(*per_token, found.neighbours[apart].sum() + 1, *pairs, 1))

    def _counted(self, text: str) -> _Counts:
        """What normalisation leaves of the text, at least."""
        classes, neighbours = np.zeros(_CLASSES, np.int64), np.zeros((_CLASSES, _CLASSES), np.int64)
        num_bytes = 0
        for start in range(0, len(text), _PART):
            part = text[start : start + _PART]
            if self._normal_form and not part.isascii():
                part = unicodedata.normalize(self._normal_form, part)
            found = _CLASS_OF_BYTE[np.frombuffer(part.encode(), np.uint8)]
            of_part = np.bincount(found, minlength=_CLASSES)
            pairs = np.bincount(found[:-1] * _CLASSES + found[1:], minlength=_CLASSES**2).reshape(_CLASSES, _CLASSES)
            if of_part[_BEYOND]:
                of_part = np.maximum(of_part - _ACROSS, 0)
            if of_part[_BEYOND] and self._normal_form is None:
                # What stands before a byte beyond ASCII may melt into it: e and an accent.
                lost = pairs[:, _BEYOND].copy()
                lost[_BEYOND] = 0
                of_part = np.maximum(of_part - lost, 0)
                of_part[_BEYOND] //= _SHRINKS
                pairs = np.maximum(pairs - lost, 0)
                pairs[:, _BEYOND] = pairs[_BEYOND] = 0
            classes, neighbours = classes + of_part, neighbours + pairs
            num_bytes += int(of_part.sum())
        return _Counts(classes, neighbours, num_bytes)


def _ceil(count: int, per_token: int) -> int:
    return -(-int(count) // int(per_token)) if per_token else int(count)


def _most_of_a_token(tokens: Sequence[bytes]) -> _Counts:
    """The largest counts of a token, over all of them."""
    written = [token for token in tokens if token]
    lengths = np.fromiter(map(len, written), np.int64, len(written))
    starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    found = _CLASS_OF_BYTE[np.frombuffer(b"".join(written), np.uint8)]
    classes = [np.add.reduceat(found == kind, starts, dtype=np.int64).max() for kind in range(_CLASSES)]
    pairs = np.append(found[:-1] * _CLASSES + found[1:], 255)
    pairs[starts[1:] - 1] = 255  # the neighbours are of two tokens
    neighbours = [np.add.reduceat(pairs == pair, starts, dtype=np.int64).max() for pair in range(_CLASSES**2)]
    return _Counts(np.array(classes), np.array(neighbours).reshape(_CLASSES, _CLASSES), int(lengths.max()))
