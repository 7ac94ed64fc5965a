"""Names that mean nothing: a value that a model can only have copied.

Words are built of syllables; those that end in a held-out syllable never occur in training.
"""

from __future__ import annotations

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
_HELD_OUT_LAST = ["bor", "len", "mir", "ras", "tol"]


def name(random: np.random.Generator, *, held_out: bool = False) -> str:
    """A capitalised name of two or three syllables."""
    last = _HELD_OUT_LAST if held_out else _LAST
    syllables = [choice(random, _FIRST) for _ in range(int(random.integers(1, 3)))] + [choice(random, last)]
    return "".join(syllables).capitalize()


def choice(random: np.random.Generator, items: list[str] | tuple[str, ...]) -> str:
    """One of the items; numpy's own choice turns strings into arrays and takes fifty times as long."""
    return items[int(random.integers(len(items)))]
