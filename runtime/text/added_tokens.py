"""The added tokens of a tokenizer (<|im_end|>, <think>, ...): found in a text only where they may be.

The library finds them in any text. Here a text says where: in its own parts for a chat template's output, so that text
of a request never becomes one. Otherwise they are found as the library finds them: the leftmost, of those the longest;
then those that are matched after normalisation; with the white space and word rules of each.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from msgspec import Struct

from qwonnx.runtime.text.template_text import Span

# Rust's \\s, which the library uses; Python's strip() takes more.
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_WINDOW = 16  # characters on each side that decide whether a match survives normalisation; Unicode's forms need fewer


class AddedToken(Struct, frozen=True):
    """One token. The flags are those of tokenizer.json.

    special: it structures a conversation and has no text of its own in an answer.
    normalized: it is looked for in normalised text.
    single_word: no letter or digit may stand beside it.
    lstrip, rstrip: white space on that side is part of it.
    """

    content: str
    special: bool = False
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


class Piece(Struct, frozen=True):
    """A part of a text: an added token, or text between them (token_id None)."""

    text: str
    token_id: int | None = None


class AddedTokens:
    """The added tokens by id.

    Args:
        tokens: by id.
        normalised: the tokenizer's normaliser; None if it has none.
    """

    def __init__(self, tokens: Mapping[int, AddedToken], normalised: Callable[[str], str] | None) -> None:
        self._normalised = normalised
        self._tokens = {token_id: token for token_id, token in tokens.items() if token.content}
        self._as_written = _Finder({t.content: i for i, t in self._tokens.items() if not t.normalized})
        contents = {t.content: i for i, t in self._tokens.items() if t.normalized}
        if normalised is not None:
            contents |= {normalised(content): token_id for content, token_id in contents.items()}
        self._in_normalised = _Finder(contents)

    def pieces(self, text: str, own: Sequence[Span]) -> list[Piece]:
        """A text in pieces.

        Args:
            text: any text.
            own: spans, ascending and not touching; a token counts only if it lies within one of them.
        """
        written = list(self._split(text, 0, len(text), own, self._as_written))
        if not self._in_normalised.is_empty:
            written = [part for piece in written for part in self._split_again(text, piece, own)]
        return [Piece(text[place.start : place.end], place.token_id) for place in written]

    def _split_again(self, text: str, place: _Place, own: Sequence[Span]) -> Iterator[_Place]:
        if place.token_id is not None:
            yield place
        else:
            yield from self._split(text, place.start, place.end, own, self._in_normalised, survives=self._survives)

    def _split(
        self,
        text: str,
        start: int,
        end: int,
        own: Sequence[Span],
        finder: _Finder,
        survives: Callable[..., bool] | None = None,
    ) -> Iterator[_Place]:
        """The text from start to end, cut at the tokens of a finder."""
        done = start
        for span in own:
            first, last = max(span.start, start), min(span.end, end)
            may_be = None if survives is None else partial(survives, text, first=start, last=end)
            for found in finder.find(text, first, last, may_be):
                token = self._tokens[found.token_id]
                if token.single_word and not _is_alone(text, found.start, found.end, start, end):
                    continue
                before, after = found.start, found.end
                if token.lstrip:
                    before = max(done, start + len(text[start:before].rstrip(_SPACES)))
                if token.rstrip:
                    after = end - len(text[after:end].lstrip(_SPACES))
                if done < before:
                    yield _Place(done, before, None)
                yield _Place(max(done, before), after, found.token_id)
                done = after
        if done < end:
            yield _Place(done, end, None)

    def _survives(self, text: str, start: int, end: int, *, first: int, last: int) -> bool:
        """Whether normalisation leaves a token apart from the text around it, which runs from first to last."""
        if self._normalised is None:
            return True
        before, after = text[max(first, start - _WINDOW) : start], text[end : min(last, end + _WINDOW)]
        parts = [self._normalised(part) for part in (before, text[start:end], after)]
        return self._normalised(before + text[start:end] + after) == "".join(parts)


class _Place(Struct, frozen=True):
    start: int
    end: int
    token_id: int | None


class _Found(Struct, frozen=True):
    start: int
    end: int
    token_id: int


class _Finder:
    """Finds the leftmost, longest of some texts. The time is that of a regular expression, for any number of texts."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = dict(ids)
        lengths: dict[str, set[int]] = {}
        for content in self._ids:
            lengths.setdefault(content[0], set()).add(len(content))
        self._lengths = {first: sorted(of_first, reverse=True) for first, of_first in lengths.items()}

    @property
    def is_empty(self) -> bool:
        return not self._ids

    def find(
        self, text: str, start: int, end: int, may_be: Callable[[int, int], bool] | None = None
    ) -> Iterator[_Found]:
        """The texts found from start to end, without those for which may_be(start, end) is false."""
        nexts = {first: text.find(first, start, end) for first in self._lengths}
        place = start
        while nexts:
            for first in [first for first, at in nexts.items() if 0 <= at < place]:
                nexts[first] = text.find(first, place, end)
            nexts = {first: at for first, at in nexts.items() if at >= 0}
            if not nexts:
                return
            first = min(nexts, key=nexts.__getitem__)
            place = nexts[first]
            for length in self._lengths[first]:
                token_id = self._ids.get(text[place : place + length]) if place + length <= end else None
                if token_id is not None and (may_be is None or may_be(place, place + length)):
                    yield _Found(place, place + length, token_id)
                    place += length
                    break
            else:
                place += 1


def _is_alone(text: str, start: int, end: int, first: int, last: int) -> bool:
    before = text[start - 1 : start] if start > first else ""
    after = text[end : end + 1] if end < last else ""
    return not (_is_word(before) or _is_word(after))


def _is_word(character: str) -> bool:
    """Rust's \\w, which the library uses."""
    if not character or character.isalnum():
        return bool(character)
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Pc") or character in "\u200c\u200d"
