"""Merging over a mapped vocabulary by the native library: what piece_merging.py does, faster and without the GIL.

If the file has classes of characters, the library cuts texts into pieces too, as Qwen 3.5's pre-tokenizer does.
"""

from __future__ import annotations

from array import array

from msgspec.structs import asdict

from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native.library import native_merging
from qwonnx.runtime.native.token_merging import Merged, Outcome
from qwonnx.runtime.text.piece_merging import LongPieceError
from qwonnx.runtime.text.pieces import CutText
from qwonnx.runtime.text.vocabulary_file import VocabularyFile, VocabularyFileError


class NativePieceMerging:
    """Merges the pieces of any texts. Safe to use from several threads.

    Args:
        file: opened and checked.

    Raises:
        NativeKernelsError: there is no native library.
    """

    def __init__(self, file: VocabularyFile) -> None:
        if array("I").itemsize != 4:
            raise NativeKernelsError("this processor's int has not 32 bits")
        self._file = file  # holds the memory that the library reads
        self._merging = native_merging(file.addresses(), asdict(file.header))
        self.can_cut = file.header.num_class_blocks > 0

    def tokens(self, cut: CutText) -> array[int]:
        """The tokens of a text that was cut.

        Raises:
            VocabularyFileError: the file is damaged.
            LongPieceError: a piece is too long.
            NativeKernelsError: there is no memory.
        """
        return _tokens(self._merging.merge(cut.text.encode(), cut.bounds))

    def encode(self, text: str) -> array[int]:
        """The tokens of a normalised text, which is cut here; only if can_cut.

        Raises:
            VocabularyFileError, LongPieceError, NativeKernelsError: as tokens() raises them.
        """
        return _tokens(self._merging.encode(text.encode()))


def _tokens(merged: Merged) -> array[int]:
    match merged.outcome:
        case Outcome.MERGED:
            return merged.tokens
        case Outcome.DAMAGED:
            raise VocabularyFileError("a number in it leads to no place")
        case Outcome.LONG_PIECE:
            raise LongPieceError
        case Outcome.NO_MEMORY:
            raise NativeKernelsError("there is no memory to merge a text: send a shorter one")
