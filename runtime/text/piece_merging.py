"""Merging over a mapped vocabulary, in Python: pieces of text to tokens. sources/token_merging.cpp does the same.

The pair of neighbours with the lowest rank merges, the first of several; then again, until no pair has a rank.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from qwonnx.runtime.text.pieces import CutText
from qwonnx.runtime.text.vocabulary_file import VocabularyFile, VocabularyFileError

_LONG = 1 << 16  # characters of a piece, which takes half a second
_NEVER = 1 << 64  # the rank of a pair that does not merge
_FEW = 128  # symbols; more are merged with a heap, whose time does not grow with their square
_KEPT = 1 << 14  # pieces, and pairs, that are remembered for the length of one call


class LongPieceError(Exception):
    """A piece is longer than merging it is worth: another vocabulary merges it."""


class PieceMerging:
    """Merges the pieces of some texts. One object for one call: it remembers what it has seen."""

    def __init__(self, file: VocabularyFile) -> None:
        self._file = file
        self._pieces: dict[str, Sequence[int]] = {}
        self._pairs: dict[int, int] = {}

    def tokens(self, cut: CutText) -> array[int]:
        """The tokens of a text.

        Raises:
            VocabularyFileError: the file is damaged.
            LongPieceError: a piece is too long for Python.
        """
        text, known, ids = cut.text, self._pieces, array("I")
        bounds = iter(cut.bounds)
        try:
            for start, end in zip(bounds, bounds, strict=True):
                if end - start > _LONG:
                    raise LongPieceError
                piece = text[start:end]
                found = known.get(piece)
                if found is None:
                    found = self._of_piece(piece.encode())
                    if len(known) < _KEPT:
                        known[piece] = found
                ids.extend(found)
        except IndexError as error:
            raise VocabularyFileError("a number in it leads to no place") from error
        return ids

    def _of_piece(self, piece: bytes) -> Sequence[int]:
        whole = self._file.find(piece, reached=True)
        if whole is not None:
            return (whole,)
        byte_ids = self._file.byte_ids
        symbols = [byte_ids[byte] for byte in piece]
        return self._merged_by_scan(symbols) if len(symbols) <= _FEW else self._merged_by_heap(symbols)

    def _merged_by_scan(self, symbols: list[int]) -> list[int]:
        ranked = self._ranked
        pairs = [ranked(left, right) for left, right in pairwise(symbols)]
        while pairs:
            lowest = min(pairs)
            if lowest == _NEVER:
                break
            at = pairs.index(lowest)
            symbols[at] = lowest & 0xFFFFFFFF
            del symbols[at + 1], pairs[at]
            if at < len(pairs):
                pairs[at] = ranked(symbols[at], symbols[at + 1])
            if at:
                pairs[at - 1] = ranked(symbols[at - 1], symbols[at])
        return symbols

    def _merged_by_heap(self, symbols: list[int]) -> list[int]:
        """The same in time n log n. A pair that is no longer there stays in the heap, and is known by its result."""
        ranked, end = self._ranked, len(symbols)
        before, after = list(range(-1, end - 1)), list(range(1, end + 1))
        gone = bytearray(end)
        heap = [(rank, at) for at, pair in enumerate(pairwise(symbols)) if (rank := ranked(*pair)) != _NEVER]
        heapq.heapify(heap)
        while heap:
            rank, at = heapq.heappop(heap)
            right = after[at]
            if gone[at] or right == end or ranked(symbols[at], symbols[right]) != rank:
                continue
            symbols[at] = rank & 0xFFFFFFFF
            gone[right] = True
            after[at] = following = after[right]
            if following < end:
                before[following] = at
                if (found := ranked(symbols[at], symbols[following])) != _NEVER:
                    heapq.heappush(heap, (found, at))
            if (previous := before[at]) >= 0 and (found := ranked(symbols[previous], symbols[at])) != _NEVER:
                heapq.heappush(heap, (found, previous))
        return [symbol for at, symbol in enumerate(symbols) if not gone[at]]

    def _ranked(self, left: int, right: int) -> int:
        """Rank, and the token that the pair makes in the lower 32 bits; _NEVER if it does not merge."""
        pair = left << 32 | right
        found = self._pairs.get(pair)
        if found is None:
            file = self._file
            first, last = file.first_merges[left], file.first_merges[left + 1]
            at = bisect_left(file.rights, right, first, last)
            found = _NEVER
            if at < last and file.rights[at] == right:
                found = file.ranks[at] << 32 | file.results[at]
            if len(self._pairs) < _KEPT:
                self._pairs[pair] = found
        return found
