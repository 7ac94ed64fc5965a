"""Names without meaning: values that a model can only copy.

Words are built of syllables. Words that end in a held-out syllable never occur in training; nearly all others may.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

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

# Last syllables: those of the vocabulary's texts, those of the test, and all other combinations of consonant, vowel and
# consonant. With only a few of them a model learns the names, not how to copy one.
FEW = ("bel", "dor", "fan", "gal", "kin", "lan", "mar", "nel", "pol", "rik", "sam", "tan", "vel", "wen")
HELD_OUT = ("bor", "len", "mir", "ras", "tol")
MANY = tuple(
    syllable
    for first, vowel, last in product("bdfghklmnprstvw", "aeiou", "bdfgklmnprst")
    if (syllable := first + vowel + last) not in HELD_OUT
)


def name(random: np.random.Generator, endings: Sequence[str]) -> str:
    """A capitalised name of two or three syllables, the last of them one of `endings`."""
    syllables = [choice(random, _FIRST) for _ in range(int(random.integers(1, 3)))] + [choice(random, endings)]
    return "".join(syllables).capitalize()


def choice(random: np.random.Generator, items: Sequence[str]) -> str:
    """One of the items; numpy's own choice turns strings into arrays and takes fifty times as long."""
    return items[int(random.integers(len(items)))]
