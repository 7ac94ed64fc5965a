"""What Qwen 3.5's pre-tokenizer asks of each character, as the tokenizers library answers it.

The native library cuts texts by this table (runtime/native/sources/text_pieces.h). The library's version of Unicode
decides, not Python's.
"""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers.pre_tokenizers import Split

from qwonnx.runtime.text.vocabulary_file import CharacterClass

_SETS = {
    CharacterClass.WORD: r"[\p{L}\p{M}]+",
    CharacterClass.LETTER: r"\p{L}+",
    CharacterClass.NUMBER: r"\p{N}+",
}
# Sets of few characters, and for each place in a contraction one that ignores case.
_SMALL_SETS = {
    CharacterClass.SPACE: r"\s+",
    CharacterClass.BREAK: r"[\r\n]+",
    CharacterClass.SINGLE: r"(?i:s|t|m|d)+",
    CharacterClass.FIRST: r"(?i:r|v)+",
    CharacterClass.E: r"(?i:e)+",
    CharacterClass.DOUBLE: r"(?i:l)+",
}
# Unicode has letters, marks and numbers in planes 0 to 3 and 14. White space, and other forms of Latin letters, are in
# these blocks of plane 0.
_PLANES = (range(0xD800), range(0xE000, 0x40000), range(0xE0000, 0xE1000))
_BLOCKS = (range(0x3100), range(0xA600, 0xAC00), range(0xFB00, 0xFB50), range(0xFE00, 0x10000))


@cache
def character_classes() -> npt.NDArray[np.uint8]:
    """uint8 [0x110000]: the CharacterClass of each character; 1 s for the first call."""
    classes = np.zeros(sys.maxunicode + 1, np.uint8)
    for sets, ranges in ((_SETS, _PLANES), (_SMALL_SETS, _BLOCKS)):
        codes = np.concatenate([np.array(each) for each in ranges])
        text = "".join(map(chr, codes))
        for bit, pattern in sets.items():
            classes[codes[_matched(text, pattern)]] |= np.uint8(bit)
    return classes


def _matched(text: str, pattern: str) -> npt.NDArray[np.bool_]:
    """Which characters of a text match a set."""
    found = np.ones(len(text), bool)
    for _, (start, end) in Split(tokenizers.Regex(pattern), "removed").pre_tokenize_str(text):
        found[start:end] = False
    return found
