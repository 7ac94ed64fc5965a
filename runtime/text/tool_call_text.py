"""Read one function call from a model's text, which may be incomplete or wrong.

    <function=NAME> <parameter=KEY> value </parameter> ... </function>

A value may contain the tags themselves, so its end is where the structure goes on:
- </parameter> before <parameter=...>, </function> or </tool_call> ends it; elsewhere it is text. If it is written twice
  there, the second one is dropped.
- A call in a value, from its opening tag to its closing one, is text.
- <parameter=KNOWN>, of a parameter that this function has and this call has not given, ends a value whose </parameter>
  is missing: the call then has fewer closing tags than opening ones.
A missing </function> is forgiven before </tool_call>, or before another function that is offered. All else is no call.

What is read from a beginning of the text holds for the whole text: the reader says when it must see more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Set
from dataclasses import dataclass
from enum import Enum, auto

_MOST_DOUBLED = 4  # </parameter> in a row; more are text
_MAX_DEPTH = 16  # of calls within values of calls; deeper ones are text
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
LONGEST_TAG = _MAX_NAME + len("<parameter=>")


@dataclass(frozen=True, slots=True)
class FoundTag:
    """A tag in a text, at [start, end). name: what stands after =, without white space around it."""

    tag: Tag
    start: int
    end: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A call that is complete. end: where its text ends, and a closing </tool_call> may follow."""

    name: str
    values: dict[str, str]
    end: int


@dataclass(frozen=True, slots=True)
class NoCall:
    """There is no call.

    resume: the text up to there is none, whatever follows; a call may begin later. None: more text must come.
    """

    resume: int | None

    @property
    def is_unfinished(self) -> bool:
        return self.resume is None


_WRONG = NoCall(0)  # where only the fact counts


class TaggedText:
    """A text that grows, and the tags in it. The text is searched once, however it is cut."""

    def __init__(self) -> None:
        self.text = ""
        self.tags: list[FoundTag] = []
        self.num_dropped = 0  # tags before the first of these
        self.function_end = -1  # number of the last </function>, counted from the first tag of all
        self.inner: dict[int, int] = {}  # after the calls within values, by number of their first tag
        self._searched = 0

    def append(self, text: str) -> None:
        self.text += text
        for found in _TAG.finditer(self.text, self._searched):
            tag = _LITERAL.get(found[0])
            if tag is None:
                tag = Tag.FUNCTION if found[1] == "function" else Tag.PARAMETER
            if tag is Tag.FUNCTION_END:
                self.function_end = self.num_dropped + len(self.tags)
            self.tags.append(FoundTag(tag, found.start(), found.end(), (found[2] or "").strip()))
            self._searched = found.end()
        # A tag that is not complete begins at the last "<" with no ">" after it.
        self._searched = max(self._searched, len(self.text) - LONGEST_TAG)

    def drop(self, end: int) -> None:
        """Remove the text before a position."""
        self.text = self.text[end:]
        kept = [found for found in self.tags if found.start >= end]
        self.num_dropped += len(self.tags) - len(kept)
        self.tags = [FoundTag(found.tag, found.start - end, found.end - end, found.name) for found in kept]
        self._searched = max(0, self._searched - end)

    def may_become_tag(self, start: int) -> bool:
        """Whether the text from a position on is a beginning of a tag."""
        rest = self.text[start:]
        return any(tag.startswith(rest) for tag in (*_LITERAL, "<function=", "<parameter=")) or (
            _BEGINNING.fullmatch(rest) is not None
        )


class CallReader:
    """Reads a function from a text.

    Args:
        written: the text.
        offered: names of the functions that the model may call.
        parameters: names of the parameters that a function has.
        is_final: no more text comes.
    """

    def __init__(
        self, written: TaggedText, offered: Set[str], parameters: Callable[[str], Set[str]], *, is_final: bool
    ) -> None:
        self._written = written
        self._tags = written.tags
        self._offered = offered
        self._parameters = parameters
        self._unfinished = NoCall(len(written.text) if is_final else None)
        self._wrong: set[int] = set()  # what is not a call within a value, by its first tag
        self._depth = 0

    def function(self, index: int) -> FunctionCall | NoCall:
        """Read the function whose opening tag has this index."""
        opening = self._tags[index]
        is_wrong = not opening.name
        known = self._parameters(opening.name)
        values: dict[str, str] = {}
        place, index = opening.end, index + 1
        while True:
            tag = self.tag_at(place, index)
            if isinstance(tag, NoCall):
                return tag
            if tag.tag is Tag.FUNCTION_END or self._ends_function(tag):
                end_of_call = tag.end if tag.tag is Tag.FUNCTION_END else tag.start
                return NoCall(end_of_call) if is_wrong else FunctionCall(opening.name, values, end_of_call)
            if tag.tag is not Tag.PARAMETER:
                return NoCall(tag.start)
            # The text of a wrong parameter is read too: a call in it is no call.
            is_wrong = is_wrong or not tag.name or tag.name in values
            end = self._value_end(index, known - values.keys() - {tag.name})
            if isinstance(end, NoCall):
                return end
            values[tag.name] = _trimmed(self._written.text[tag.end : end.start])
            place, index = end.place, end.index

    def tag_at(self, place: int, index: int) -> FoundTag | NoCall:
        """The tag with this index, if only white space stands before it from a place on."""
        text = self._written.text
        start = _end_of_space(text, place)
        if index < len(self._tags):
            tag = self._tags[index]
            return tag if tag.start <= start else NoCall(start)
        if start == len(text) or self._written.may_become_tag(start):
            return self._unfinished
        return NoCall(start)

    def _ends_function(self, tag: FoundTag) -> bool:
        """Whether a tag ends a function whose </function> is missing."""
        return tag.tag is Tag.CALL_END or (tag.tag is Tag.FUNCTION and tag.name in self._offered)

    def _value_end(self, index: int, missing: Set[str]) -> _ValueEnd | NoCall:
        """The end of the value whose opening tag has this index. missing: parameters that may still be given."""
        lone: list[int] = []  # opening tags of missing parameters that may have begun the next value
        opened: list[int] = []  # opening tags in the value without a closing one so far
        index += 1
        while index < len(self._tags):
            tag = self._tags[index]
            if tag.tag in (Tag.CALL, Tag.FUNCTION):
                after = self._inner_call(index)
                if isinstance(after, NoCall) and after.is_unfinished:
                    return after
                index = index + 1 if isinstance(after, NoCall) else after
                continue
            if tag.tag is Tag.PARAMETER:
                opened.append(index)
            elif tag.tag is Tag.PARAMETER_END:
                follower = self._follower(index)
                if isinstance(follower, NoCall) and follower.is_unfinished:
                    return follower
                if isinstance(follower, NoCall):  # text follows, so this is text
                    if opened:
                        opened.pop()
                elif follower.index > index + 1:  # written twice
                    if not opened:
                        return _ValueEnd(tag.start, self._tags[follower.index - 1].end, follower.index)
                    opened.pop()
                else:
                    following = self._tags[follower.index]
                    is_last = following.tag is not Tag.PARAMETER
                    # A parameter that this one cannot be, or that follows, was only spoken of.
                    while opened and self._tags[opened[-1]].name not in missing - {following.name}:
                        opened.pop()
                    if not opened:
                        return _ValueEnd(tag.start, tag.end, follower.index)
                    if is_last:
                        first = min([*lone, *(place for place in opened if self._tags[place].name in missing)])
                        return _ValueEnd(self._tags[first].start, self._tags[first].start, first)
                    lone.append(opened.pop())
            index += 1
        return self._unfinished

    def _follower(self, index: int) -> _Follower | NoCall:
        """The tag that shows that the </parameter> with this index closes something: it follows at once."""
        for _ in range(_MOST_DOUBLED):
            tag = self.tag_at(self._tags[index].end, index + 1)
            index += 1
            if isinstance(tag, NoCall):
                return tag
            if tag.tag in (Tag.PARAMETER, Tag.FUNCTION_END) or self._ends_function(tag):
                return _Follower(index)
            if tag.tag is not Tag.PARAMETER_END:
                return _WRONG
        return _WRONG

    def _inner_call(self, index: int) -> int | NoCall:
        """The index after a complete call, which begins with this tag: <tool_call> or a function."""
        number = self._written.num_dropped + index
        if number in self._written.inner:
            return self._written.inner[number] - self._written.num_dropped
        if self._written.function_end < number:
            return self._unfinished
        if number in self._wrong or self._depth >= _MAX_DEPTH:
            return _WRONG
        self._depth += 1
        is_call = self._tags[index].tag is Tag.CALL
        after = self._inner_functions(index) if is_call else self._inner_function(index)
        self._depth -= 1
        if not isinstance(after, NoCall):
            self._written.inner[number] = self._written.num_dropped + after
        elif not after.is_unfinished:
            self._wrong.add(number)
        return after

    def _inner_functions(self, index: int) -> int | NoCall:
        after: int | NoCall = index + 1
        while not isinstance(after, NoCall):
            tag = self.tag_at(self._tags[after - 1].end, after)
            if isinstance(tag, NoCall):
                return tag
            if tag.tag is Tag.CALL_END and after > index + 1:
                return after + 1
            if tag.tag is not Tag.FUNCTION:
                return _WRONG
            after = self._inner_call(after)
        return after

    def _inner_function(self, index: int) -> int | NoCall:
        index += 1
        while True:
            tag = self.tag_at(self._tags[index - 1].end, index)
            if isinstance(tag, NoCall):
                return tag
            if tag.tag is Tag.FUNCTION_END:
                return index + 1
            if tag.tag is not Tag.PARAMETER:
                return _WRONG
            index += 1
            while True:
                if index >= len(self._tags):
                    return self._unfinished
                inner = self._tags[index]
                after: int | NoCall = _WRONG
                if inner.tag in (Tag.CALL, Tag.FUNCTION):
                    after = self._inner_call(index)
                    if isinstance(after, NoCall) and after.is_unfinished:
                        return after
                elif inner.tag is Tag.PARAMETER_END:
                    following = self.tag_at(inner.end, index + 1)
                    if isinstance(following, NoCall) and following.is_unfinished:
                        return following
                    if isinstance(following, FoundTag) and following.tag in (Tag.PARAMETER, Tag.FUNCTION_END):
                        index += 1
                        break
                index = index + 1 if isinstance(after, NoCall) else after


@dataclass(frozen=True, slots=True)
class _ValueEnd:
    """start: where the value ends. place, index: where the function goes on, and its next tag."""

    start: int
    place: int
    index: int


@dataclass(frozen=True, slots=True)
class _Follower:
    index: int


def _end_of_space(text: str, place: int) -> int:
    """The first position from a place on that is not white space."""
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def _trimmed(value: str) -> str:
    """A value without the line break on each side that belongs to the tags."""
    return value.removeprefix("\n").removesuffix("\n")
