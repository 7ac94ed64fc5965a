"""Names that mean nothing: a value that a model can only have copied.

Words are built of syllables. Held out are words, a quarter of those with certain endings, by a hash: a model may know
how such a word is spelt, and has never seen it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

_FIRST = [
    "ba",
    "be",
    "bo",
    "da",
    "de",
    "do",
    "fa",
    "fi",
    "ga",
    "go",
    "ka",
    "ke",
    "ko",
    "la",
    "le",
    "lo",
    "ma",
    "me",
    "mi",
    "na",
    "ne",
    "no",
    "pa",
    "pe",
    "ra",
    "re",
    "ri",
    "ro",
    "sa",
    "se",
    "so",
    "ta",
    "te",
    "ti",
    "to",
]
_LAST = ["bel", "dor", "fan", "gal", "kin", "lan", "mar", "nel", "pol", "rik", "sam", "tan", "vel", "wen"]
_SOMETIMES_HELD_OUT = ["bor", "len", "mir", "ras", "tol"]


def name(random: np.random.Generator, *, held_out: bool = False) -> str:
    """A capitalised name of two or three syllables."""
    last = _SOMETIMES_HELD_OUT if held_out else _LAST + _SOMETIMES_HELD_OUT
    while True:
        syllables = [choice(random, _FIRST) for _ in range(int(random.integers(1, 3)))] + [choice(random, last)]
        word = "".join(syllables).capitalize()
        if is_held_out(word) == held_out:
            return word


def is_held_out(word: str) -> bool:
    """Whether a name is kept for the test."""
    return word[-3:] in _SOMETIMES_HELD_OUT and zlib.crc32(word.encode()) % 4 == 0


def choice(random: np.random.Generator, items: Sequence[str]) -> str:
    """One of the items; numpy's own choice turns strings into arrays and takes fifty times as long."""
    return items[int(random.integers(len(items)))]
