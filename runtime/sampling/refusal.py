"""Reasons of llguidance in this project's words: each names the limit and what to change.

A reason without an entry here is about the form's own text (an unknown format, an unclosed group) and is kept.
"""

from __future__ import annotations

import re

_MAX_CHARACTERS = 300

_TOO_COMPLEX = "its regular expressions need more states than allowed: use smaller numbers of repetitions within others"
_WORDS = (
    (re.compile(r"too many (expressions|states)|lexer error|fuel exhausted|LexerTooComplex"), _TOO_COMPLEX),
    (
        re.compile(r"Current row has \d+ items; max is (\d+)|ParserTooComplex"),
        "too many parts may follow at one place: use fewer optional properties, alternatives or nested repetitions",
    ),
    (
        re.compile(r"^NoExtension(Bias)?$"),
        "no text has this form: look for references that lead only to themselves and bounds that exclude each other",
    ),
    (
        re.compile(r"(schema|grammar) too (large|big)|grammar size"),
        "it has too many rules: send a smaller form",
    ),
    (re.compile(r"max(imum)? depth|recursion limit|too deep"), "it is nested too deeply: use $defs"),
)


def in_our_words(reason: str) -> str:
    """A reason in one line of at most 300 characters."""
    line = " ".join(reason[: 1 << 16].replace("<non-verbose/>", "").split())
    for pattern, words in _WORDS:
        if pattern.search(line):
            return words
    return line if len(line) <= _MAX_CHARACTERS else line[: _MAX_CHARACTERS - 3] + "..."
