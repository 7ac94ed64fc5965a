"""Where a value in a tool call ends.

A value may contain the tags themselves, so its end is where the structure goes on:
- </parameter> before <parameter=...>, </function> or </tool_call> ends it; elsewhere it is text. If it is written twice
  there, the second one is dropped.
- A call in a value, from its opening tag to its closing one, is text. If nothing follows that could close the value,
  the call was only begun there, and the value ends at the first closing tag.
- <parameter=KNOWN>, of a parameter that this function has and this call has not given, ends a value whose </parameter>
  is missing: the call then has fewer closing tags than opening ones.
- If the answer ends in the value, the closing tags that end the answer do not belong to it.

What is read from a beginning of the text holds for the whole text: the reader says when it must see more, and up to
where the text certainly belongs to the value.
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum, auto

from msgspec import Struct

from qwonnx.runtime.text.call_tags import FoundTag, Tag, TaggedText

_MOST_DOUBLED = 4  # </parameter> in a row; more are text
_MAX_DEPTH = 16  # of calls within values of calls; deeper ones are text
# A call in a value with so many tags is looked at again only when it has a quarter more, and not when the answer ends:
# a model that repeats tags must not take the time of others.
_MANY_TAGS = 256


class Reading(Enum):
    """What may be there instead of a tag."""

    UNDECIDED = auto()  # more text must come
    WRONG = auto()  # something else
    END = auto()  # the answer has ended


class ValueEnd(Struct, frozen=True):
    """The end of a value.

    start: position where it ends.
    index: of the tag with which the function goes on, if any.
    is_forced: only the end of the answer ends it.
    """

    start: int
    index: int
    is_forced: bool = False


class CallTags:
    """The tags of a text, as functions and calls.

    Args:
        written: the text.
        offered: names of the functions that the model may call.

    is_patient: a look at many tags may wait for more of them.
    """

    def __init__(self, written: TaggedText, offered: Set[str]) -> None:
        self._written = written
        self._offered = offered
        self.is_patient = True
        self._inner: dict[int, int] = {}  # the indices after calls in values, by index of their first tag
        self._wrong: set[int] = set()  # what is not a call in a value, by index of its first tag
        self._depth = 0

    def following(self, index: int) -> FoundTag | Reading:
        """The tag with this index, if it follows the one before it."""
        tags = self._written.tags
        if index < len(tags):
            return tags[index] if tags[index].follows else Reading.WRONG
        if not self._written.may_follow:
            return Reading.WRONG
        if not self._written.is_final:
            return Reading.UNDECIDED
        return Reading.END if self._written.ends_in_tag else Reading.WRONG

    def ends_function(self, tag: FoundTag) -> bool:
        """Whether a tag ends a function: a missing </function> is forgiven before </tool_call> and offered ones."""
        is_offered = tag.tag is Tag.FUNCTION and tag.name in self._offered
        return tag.tag in (Tag.FUNCTION_END, Tag.CALL_END) or is_offered

    def follower(self, index: int) -> int | Reading:
        """The index of what shows that the </parameter> with this index closes something: it follows at once."""
        for _ in range(_MOST_DOUBLED):
            index += 1
            tag = self.following(index)
            if tag is Reading.END:
                return index
            if isinstance(tag, Reading):
                return tag
            if tag.tag is Tag.PARAMETER or self.ends_function(tag):
                return index
            if tag.tag is not Tag.PARAMETER_END:
                return Reading.WRONG
        return Reading.WRONG

    def inner_call(self, index: int) -> int | Reading:
        """The index after a complete call in a value, which begins with this tag: <tool_call> or a function."""
        if index in self._inner:
            return self._inner[index]
        if index in self._wrong or self._depth >= _MAX_DEPTH:
            return Reading.WRONG
        after: int | Reading = Reading.UNDECIDED
        is_long = self._written.is_final and len(self._written.tags) - index > _MANY_TAGS
        if self._written.function_end is not None and self._written.function_end >= index and not is_long:
            self._depth += 1
            is_call = self._written.tags[index].tag is Tag.CALL
            after = self._functions(index) if is_call else self._function(index)
            self._depth -= 1
        if after is Reading.END or (after is Reading.UNDECIDED and self._written.is_final):
            after = Reading.WRONG
        if not isinstance(after, Reading):
            self._inner[index] = after
        elif after is Reading.WRONG:
            self._wrong.add(index)
        return after

    def _functions(self, index: int) -> int | Reading:
        after: int | Reading = index + 1
        while not isinstance(after, Reading):
            tag = self.following(after)
            if isinstance(tag, Reading):
                return tag
            if tag.tag is Tag.CALL_END and after > index + 1:
                return after + 1
            if tag.tag is not Tag.FUNCTION:
                return Reading.WRONG
            after = self.inner_call(after)
        return after

    def _function(self, index: int) -> int | Reading:
        index += 1
        while True:
            tag = self.following(index)
            if isinstance(tag, Reading):
                return tag
            if tag.tag is Tag.FUNCTION_END:
                return index + 1
            if tag.tag is not Tag.PARAMETER:
                return Reading.WRONG
            after = self._parameter(index + 1)
            if isinstance(after, Reading):
                return after
            index = after

    def _parameter(self, index: int) -> int | Reading:
        """The index after the value that begins before this tag."""
        tags = self._written.tags
        while index < len(tags):
            after: int | Reading = Reading.WRONG
            if tags[index].tag in (Tag.CALL, Tag.FUNCTION):
                after = self.inner_call(index)
                if after is Reading.UNDECIDED:
                    return after
            elif tags[index].tag is Tag.PARAMETER_END:
                following = self.following(index + 1)
                if following is Reading.UNDECIDED:
                    return following
                if isinstance(following, FoundTag) and following.tag in (Tag.PARAMETER, Tag.FUNCTION_END):
                    return index + 1
            index = index + 1 if isinstance(after, Reading) else after
        return Reading.UNDECIDED


class ValueReader:
    """Reads one value.

    Args:
        written: the text.
        calls: its tags.
        index: of the value's opening tag.
        missing: parameters that the function has and the call has not given; must not change.
    """

    def __init__(self, written: TaggedText, calls: CallTags, index: int, missing: Set[str]) -> None:
        self._written = written
        self._calls = calls
        self._missing = missing
        self._index = index + 1  # of the next tag
        self._opening = index
        self._opened: list[int] = []  # opening tags in the value without a closing one so far
        self._held: list[int] = []  # of these, the ones that may begin the next value, in order
        self._lone: int | None = None  # the first opening tag with a closing one that may have begun the next value
        self._seen: tuple[int, bool] | None = None  # what there was when a call in the value was undecided
        self._candidate = 0  # no tag before this one may end the value if a call in it is none

    def read(self) -> ValueEnd | None:
        """Look at the tags that have come; the end of the value, or None if more text must come."""
        tags = self._written.tags
        while self._index < len(tags):
            tag = tags[self._index]
            if tag.tag in (Tag.CALL, Tag.FUNCTION):
                if self._waits():
                    return None
                after = self._whole_call()
                if after is Reading.UNDECIDED:
                    self._seen = self._state()
                    return None
                self._seen = None
                if not isinstance(after, Reading):
                    self._index = after
                    continue
            elif tag.tag is Tag.PARAMETER:
                self._opened.append(self._index)
                is_of_function = tag.follows and tags[self._index - 1].tag is Tag.FUNCTION
                if tag.name in self._missing and not is_of_function:
                    self._held.append(self._index)
            elif tag.tag is Tag.PARAMETER_END:
                follower = self._calls.follower(self._index)
                if follower is Reading.UNDECIDED:
                    return None
                end = self._closed(follower)
                if end is not None:
                    return end
            self._index += 1
        return self._last_end() if self._written.is_final else None

    def certain(self) -> int:
        """The position up to which the text belongs to the value, if read() gave no end."""
        tags = self._written.tags
        first = self._first()
        if first is not None:
            return tags[first].start
        if self._index < len(tags):
            if tags[self._index].tag is Tag.PARAMETER_END:
                return tags[self._index].start
            for index in range(max(self._candidate, self._index), len(tags)):
                self._candidate = index
                tag = tags[index]
                if tag.tag is Tag.PARAMETER_END or (tag.tag is Tag.PARAMETER and tag.name in self._missing):
                    return tag.start
        closing = self._closing()
        return self._written.tail if closing is None else tags[closing].start

    def _whole_call(self) -> int | Reading:
        """The index after the call that begins in the value, if it is whole.

        If the answer ends after it, or a </tool_call> follows a function alone, its last tags close the value.
        """
        after = self._calls.inner_call(self._index)
        if isinstance(after, Reading):
            return after
        following = self._calls.following(after)
        if following is Reading.UNDECIDED:
            return following
        is_alone = self._written.tags[self._index].tag is Tag.FUNCTION
        is_call_end = isinstance(following, FoundTag) and following.tag is Tag.CALL_END
        return Reading.WRONG if following is Reading.END or (is_alone and is_call_end) else after

    def _state(self) -> tuple[int, bool]:
        """What a look at a call in the value depends on."""
        return len(self._written.tags), self._written.may_follow

    def _waits(self) -> bool:
        """Whether another look at a call in the value would be too early."""
        if self._seen is None or self._written.is_final:
            return False
        if self._seen == self._state():
            return True
        num_tags, num_inner = self._seen[0], self._seen[0] - self._index
        is_long = self._calls.is_patient and num_inner > _MANY_TAGS
        return is_long and len(self._written.tags) < num_tags + num_inner // 4

    def _closed(self, follower: int | Reading) -> ValueEnd | None:
        """The end of the value, if the </parameter> that is looked at shows where that is."""
        tags = self._written.tags
        tag = tags[self._index]
        if isinstance(follower, Reading):  # text follows, so this is text
            self._pop()
            return None
        is_forced = follower == len(tags)
        if follower > self._index + 1:  # written twice
            if not self._opened:
                return ValueEnd(tag.start, follower, is_forced)
            self._pop()
            return None
        next_name = None if is_forced or tags[follower].tag is not Tag.PARAMETER else tags[follower].name
        # A parameter that this one cannot be, or that follows, was only spoken of.
        while self._opened and not self._may_be_next(self._opened[-1], next_name):
            self._pop()
        if not self._opened:
            return ValueEnd(tag.start, follower, is_forced)
        if next_name is None:
            first = self._first()
            assert first is not None, "what was not popped is held"
            return ValueEnd(tags[first].start, first, is_forced)
        lone = self._opened[-1]
        self._lone = lone if self._lone is None else min(self._lone, lone)
        self._pop()
        return None

    def _last_end(self) -> ValueEnd:
        """The end of a value in which the answer ends."""
        first = self._first()
        if first is None:
            first = self._closing()
        if first is None:
            return ValueEnd(self._written.end, len(self._written.tags), is_forced=True)
        return ValueEnd(self._written.tags[first].start, first, is_forced=True)

    def _first(self) -> int | None:
        """The first tag that may have begun the next value."""
        if self._held and (self._lone is None or self._held[0] < self._lone):
            return self._held[0]
        return self._lone

    def _closing(self) -> int | None:
        """The first of the tags that close the call at the end of the text."""
        tags = self._written.tags
        if not self._written.may_follow or (self._written.is_final and not self._written.ends_in_tag):
            return None
        first = None
        for index in range(len(tags) - 1, max(len(tags) - 3, self._opening), -1):
            if tags[index].tag is Tag.FUNCTION_END:
                return index
            if tags[index].tag is not Tag.CALL_END or first is not None:
                break
            first = index
            if not tags[index].follows:
                break
        return first

    def _may_be_next(self, index: int, given: str | None) -> bool:
        """Whether an opened tag may begin the next value, if it is not the one that is given."""
        return bool(self._held) and self._held[-1] == index and self._written.tags[index].name != given

    def _pop(self) -> None:
        if self._opened:
            last = self._opened.pop()
            if self._held and self._held[-1] == last:
                self._held.pop()
