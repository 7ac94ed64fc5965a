"""The tags of tool calls in a text that grows, and the text that is not given out yet.

Positions count from the beginning of the answer, so they stay valid when text is taken out. All work is linear in the
text, in whatever pieces it comes.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from msgspec import Struct

_MAX_NAME = 1024  # characters of a name in a tag; longer ones are text


class Tag(Enum):
    """The tags of calls."""

    CALL = auto()
    CALL_END = auto()
    FUNCTION = auto()
    FUNCTION_END = auto()
    PARAMETER = auto()
    PARAMETER_END = auto()


_LITERAL = {
    "<tool_call>": Tag.CALL,
    "</tool_call>": Tag.CALL_END,
    "</function>": Tag.FUNCTION_END,
    "</parameter>": Tag.PARAMETER_END,
}
_NAMED = rf"<(function|parameter)=([^<>\n]{{1,{_MAX_NAME}}})"
_TAG = re.compile(rf"</?tool_call>|</function>|</parameter>|{_NAMED}>")
_BEGINNING = re.compile(rf"{_NAMED}|<(function|parameter)=")
_SPACE = re.compile(r"\s*+")
_BREAKS = re.compile(r"\n*+")
_BEGINNINGS = (*_LITERAL, "<function=", "<parameter=")


class FoundTag(Struct, frozen=True):
    """A tag at [start, end).

    name: what stands after =, without white space around it.
    follows: only white space is between the tag before it and this one.
    """

    tag: Tag
    start: int
    end: int
    name: str
    follows: bool


class TaggedText:
    """A text that grows, and the tags in it.

    tags: all so far.
    start: position of the first character that was not taken out.
    tail: position of what may become a tag; the text's end if nothing may.
    function_end: index of the last </function>; None if there is none.
    is_final: no more text comes.
    """

    def __init__(self) -> None:
        self.tags: list[FoundTag] = []
        self.start = 0
        self.tail = 0
        self.function_end: int | None = None
        self.is_final = False
        self._text = ""
        self._base = 0  # position of its first character, which may have been taken out
        self._is_blank = False  # from the last tag to the tail there is only white space
        self._breaks_end, self._breaks_start = 0, 0  # between them there are only line breaks

    @property
    def end(self) -> int:
        """Position after the last character."""
        return self._base + len(self._text)

    @property
    def may_follow(self) -> bool:
        """Whether the next tag may still follow the last one with only white space between them."""
        return self._is_blank

    @property
    def ends_in_tag(self) -> bool:
        """Whether there is nothing but white space after the last tag."""
        return self._is_blank and self.tail == self.end

    def append(self, text: str) -> None:
        """Add text."""
        self._text += text
        place = self.tail - self._base
        for found in _TAG.finditer(self._text, place):
            self._look_at(place, found.start())
            tag = _LITERAL.get(found[0])
            if tag is None:
                tag = Tag.FUNCTION if found[1] == "function" else Tag.PARAMETER
            if tag is Tag.FUNCTION_END:
                self.function_end = len(self.tags)
            name, follows = (found[2] or "").strip(), self._is_blank
            self.tags.append(FoundTag(tag, self._base + found.start(), self._base + found.end(), name, follows))
            self._is_blank = True
            place = found.end()
        # A tag that is not complete has no other "<" after its first one.
        last = self._text.rfind("<", place)
        tail = last if last >= 0 and _may_become_tag(self._text[last:]) else len(self._text)
        self._look_at(place, tail)
        self.tail = self._base + tail

    def take(self, end: int) -> str:
        """Take out the text before a position, and return it."""
        if end <= self.start:
            return ""
        taken = self._text[self.start - self._base : end - self._base]
        self.start, self.tail = end, max(self.tail, end)
        if self.start - self._base > len(self._text) // 2:  # seldom, so that the work stays linear
            self._text = self._text[self.start - self._base :]
            self._base = self.start
        return taken

    def find(self, text: str, start: int) -> int | None:
        """Position of the first occurrence from a position on."""
        found = self._text.find(text, max(0, start - self._base))
        return None if found < 0 else self._base + found

    def starts_with(self, text: str, place: int) -> bool:
        """Whether a text stands at a position."""
        return self._text.startswith(text, place - self._base)

    def rest(self, start: int) -> str:
        """The text from a position on."""
        return self._text[max(start, self.start) - self._base :]

    def after_space(self, start: int) -> int:
        """The first position from a position on that is not white space."""
        found = _SPACE.match(self._text, start - self._base)
        return start if found is None else self._base + found.end()

    def after_breaks(self) -> int:
        """The position after the line breaks with which the text begins."""
        found = _BREAKS.match(self._text, self.start - self._base)
        return self.start if found is None else self._base + found.end()

    def before_break(self, end: int) -> int:
        """The position before the line break that ends there, if one does."""
        place = end - self._base
        return end - 1 if end > self.start and self._text[place - 1] == "\n" else end

    def before_breaks(self, end: int) -> int:
        """The position before all line breaks that end there. What was looked at is not looked at again."""
        known = max(self._breaks_end, self.start) if self._breaks_end <= end else self.start
        before = self._text[known - self._base : end - self._base].rstrip("\n")
        is_all = not before and known == self._breaks_end
        self._breaks_start = self._breaks_start if is_all else known + len(before)
        self._breaks_end = end
        return max(self.start, self._breaks_start)

    def _look_at(self, place: int, end: int) -> None:
        if self._is_blank and place < end:
            self._is_blank = self._text[place:end].isspace()


def _may_become_tag(rest: str) -> bool:
    """Whether a text is a beginning of a tag."""
    return any(tag.startswith(rest) for tag in _BEGINNINGS) or _BEGINNING.fullmatch(rest) is not None
