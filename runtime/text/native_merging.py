"""Merging over a mapped vocabulary by the native library: what piece_merging.py does, faster and without the GIL."""

from __future__ import annotations

from array import array
from dataclasses import asdict

from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native.library import native_merging
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

    def tokens(self, cut: CutText) -> array[int]:
        """The tokens of a text.

        Raises:
            VocabularyFileError: the file is damaged.
            NativeKernelsError: there is no memory.
        """
        found = self._merging.tokens(cut.text.encode(), cut.bounds)
        if found is None:
            raise VocabularyFileError("a number in it leads to no place")
        return found
