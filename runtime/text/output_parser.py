"""Split a model's text into reasoning, content and tool calls, while it streams.

    reasoning </think> content <tool_call> <function=NAME> <parameter=KEY> value </parameter> </function> </tool_call>

Text is emitted as soon as it cannot be part of a call or a tag, and the arguments of a call as they are written
(function_reader.py). Nothing that was emitted is taken back, and the result does not depend on how the text is cut into
pieces. Only tags and the line breaks around them are removed: what is no call stays text, character for character.

- <tool_call> begins a call of any function, because the model may make up a name; <function=NAME> alone only of an
  offered one. A parameter or the end of the function must follow the name.
- A call in the reasoning is a part of it if </think> follows. If the answer ends without </think>, a complete call of
  an offered function counts. So text from the beginning of such a call on waits for the one or the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from qwonnx.runtime.text.answer_events import ContentDelta, Event, ReasoningDelta
from qwonnx.runtime.text.call_tags import FoundTag, Tag, TaggedText
from qwonnx.runtime.text.call_values import CallTags, Reading
from qwonnx.runtime.text.function_reader import FunctionReader
from qwonnx.runtime.text.parser_fallbacks import PARSER_FALLBACKS
from qwonnx.runtime.text.stop_strings import longest_beginning
from qwonnx.runtime.text.tool_arguments import ToolSchemas

_THINK, _THINK_END = "<think>", "</think>"
_CALL, _FUNCTION = "<tool_call>", "<function="


class _Part(Enum):
    REASONING = auto()
    OPENING = auto()  # only white space so far: a <think> may still begin the reasoning
    CONTENT = auto()
    FUNCTION = auto()  # in a call
    AFTER_FUNCTION = auto()  # </tool_call> or another function may follow


class OutputParser:
    """Parses one answer.

    Args:
        thinking_open: the prompt ended inside <think>, so the text begins with reasoning.
        tools: the request's tools in OpenAI's form; without any, tool-call tags are ordinary text.
    """

    def __init__(self, thinking_open: bool, tools: Sequence[dict[str, Any]] | None = None) -> None:
        self._part = _Part.REASONING if thinking_open else _Part.OPENING
        self._schemas = ToolSchemas(tools or ())
        self._has_tools = bool(tools)
        self._written = TaggedText()
        self._calls = CallTags(self._written, self._schemas.names)
        self._delta: type[ReasoningDelta] | type[ContentDelta] = ReasoningDelta if thinking_open else ContentDelta
        self._skip_breaks = False  # line breaks that follow a closing tag belong to it
        self._next = 0  # index of the first tag that was not looked at
        self._function: FunctionReader | None = None
        self._in_tool_call = False  # the last function was in a <tool_call>
        self._looked = 0  # in the reasoning: no </think> begins before; in the opening: only white space is before

    @property
    def is_reasoning(self) -> bool:
        """Whether the next text is reasoning, as far as the parser knows."""
        return self._part is _Part.REASONING

    def push(self, text: str) -> list[Event]:
        """Take the next piece of text; return the events that are certain now."""
        self._written.append(text)
        events: list[Event] = []
        while self._advance(events):
            pass
        return events

    def finish(self, *, cut_off: bool = False) -> list[Event]:
        """End the answer; return what was held back, as events.

        Args:
            cut_off: the model would have gone on. A call that it is writing then stays open; otherwise it is closed, or
                text if nothing of it was certain.
        """
        self._calls.is_patient = False
        events = self.push("")
        if self._part is _Part.REASONING and self._has_tools:
            self._part = _Part.CONTENT  # no </think> came: calls count, and the other text stays reasoning
            events += self.push("")
        if not cut_off:
            self._written.is_final = True
            events += self.push("")
        else:
            named = self._last_function()
            if named is not None:
                self._begin_function(named)
            if self._function is not None:
                self._function.cut(events)
        if self._skip_breaks or self._part is _Part.AFTER_FUNCTION:
            self._written.take(self._written.after_breaks())
        self._emit(events, self._written.end)
        return events

    def _advance(self, events: list[Event]) -> bool:
        """Handle pending text in the present part; True if there may be more to do."""
        if self._skip_breaks:
            self._written.take(self._written.after_breaks())
            if self._written.start == self._written.end:
                return False
            self._skip_breaks = False
        match self._part:
            case _Part.OPENING:
                return self._advance_opening()
            case _Part.REASONING:
                return self._advance_reasoning(events)
            case _Part.FUNCTION:
                return self._advance_function(events)
            case _Part.AFTER_FUNCTION:
                return self._advance_after_function()
        if self._has_tools:
            return self._advance_content(events)
        self._emit(events, self._written.end)
        return False

    def _advance_opening(self) -> bool:
        self._looked = self._written.after_space(self._looked)
        if self._written.starts_with(_THINK, self._looked):
            self._written.take(self._looked + len(_THINK))
            self._part, self._delta, self._skip_breaks = _Part.REASONING, ReasoningDelta, True
            return True
        if _THINK.startswith(self._written.rest(self._looked)):
            return False
        self._part = _Part.CONTENT
        return True

    def _advance_reasoning(self, events: list[Event]) -> bool:
        written = self._written
        end = written.find(_THINK_END, self._looked)
        if end is not None:
            self._emit(events, written.before_breaks(end))
            written.take(end + len(_THINK_END))
            while self._next < len(written.tags) and written.tags[self._next].start < end:
                self._next += 1
            self._part, self._delta, self._skip_breaks = _Part.CONTENT, ContentDelta, True
            return True
        self._looked = max(written.start, written.end - len(_THINK_END) + 1)
        certain = written.end - longest_beginning(written.rest(self._looked), (_THINK_END,))
        if self._has_tools:
            self._find_function()
            certain = min(certain, self._may_begin())
        self._emit(events, written.before_breaks(certain))
        return False

    def _advance_content(self, events: list[Event]) -> bool:
        function = self._find_function()
        self._emit(events, self._written.before_breaks(self._may_begin()))
        if function is None:
            return False
        self._in_tool_call = function > self._next
        self._begin_function(function)
        return True

    def _begin_function(self, index: int) -> None:
        is_late = self._delta is ReasoningDelta
        self._function = FunctionReader(
            self._written, self._calls, self._schemas, index, self._delta, opens_late=is_late
        )
        self._part = _Part.FUNCTION

    def _advance_function(self, events: list[Event]) -> bool:
        function = self._function
        assert function is not None, "a function has begun"
        if not function.advance(events):
            return False
        self._after_function(function)
        return True

    def _after_function(self, function: FunctionReader) -> None:
        self._next = function.index
        self._function = None
        self._part = _Part.CONTENT if function.is_wrong else _Part.AFTER_FUNCTION

    def _advance_after_function(self) -> bool:
        tag = self._calls.following(self._next)
        if tag is Reading.UNDECIDED:
            return False
        if isinstance(tag, FoundTag) and tag.tag is Tag.FUNCTION and self._may_call(tag.name):
            is_function = self._begins_function(self._next)
            if is_function is None:
                return False
            self._written.take(self._written.after_breaks())
            if is_function:
                self._begin_function(self._next)
                return True
            self._next += 1
            self._part = _Part.CONTENT
            return True
        self._end_tool_call()
        return True

    def _end_tool_call(self) -> None:
        """After a call, </tool_call> and line breaks belong to it."""
        tag = self._calls.following(self._next)
        if isinstance(tag, FoundTag) and tag.tag is Tag.CALL_END:
            self._written.take(tag.end)
            self._next += 1
        self._part, self._skip_breaks = _Part.CONTENT, True

    def _may_call(self, name: str) -> bool:
        """Whether a function may follow another one at once."""
        return name in self._schemas.names or (self._in_tool_call and self._delta is ContentDelta)

    def _find_function(self) -> int | None:
        """Look for the first function of a call.

        self._next is then the first tag that may begin a call. Returns the index of the function's tag, or None: there
        is none, or it is undecided.
        """
        tags = self._written.tags
        while self._next < len(tags):
            tag, index = tags[self._next], self._next
            is_offered_only = self._delta is ReasoningDelta
            if tag.tag is Tag.CALL:
                following = self._calls.following(index + 1)
                if following is Reading.UNDECIDED:
                    return None
                if isinstance(following, FoundTag) and following.tag is Tag.FUNCTION:
                    index += 1
            elif tag.tag is Tag.FUNCTION:
                is_offered_only = True
            if tags[index].tag is Tag.FUNCTION and (not is_offered_only or tags[index].name in self._schemas.names):
                begins = self._begins_function(index)
                if begins is None:
                    return None
                if begins:
                    return index
            if tag.tag is Tag.CALL and self._delta is ContentDelta:
                PARSER_FALLBACKS.add()
            self._next += 1
        return None

    def _last_function(self) -> int | None:
        """The index of a function's tag after which the text ends, if a call may begin with it."""
        tags, index = self._written.tags, self._next
        if self._function is not None or self._delta is ReasoningDelta or index >= len(tags):
            return None
        is_alone = tags[index].tag is Tag.FUNCTION
        index += not is_alone
        if index != len(tags) - 1 or tags[index].tag is not Tag.FUNCTION or not tags[index].name:
            return None
        is_after = self._part is _Part.AFTER_FUNCTION and self._may_call(tags[index].name)
        is_call = not is_alone or is_after or tags[index].name in self._schemas.names
        return index if is_call and self._begins_function(index) is None else None

    def _begins_function(self, index: int) -> bool | None:
        """Whether a function's tag is followed by a parameter or the function's end; None: undecided."""
        tag = self._calls.following(index + 1)
        if tag is Reading.UNDECIDED:
            return None
        return isinstance(tag, FoundTag) and (tag.tag is Tag.PARAMETER or self._calls.ends_function(tag))

    def _may_begin(self) -> int:
        """The position from which on the text may be a call, after _find_function()."""
        tags = self._written.tags
        if self._next < len(tags):
            return tags[self._next].start
        rest = self._written.rest(self._written.tail)
        named = rest.removeprefix(_FUNCTION).strip()
        is_function = rest.startswith(_FUNCTION) and any(name.startswith(named) for name in self._schemas.names)
        may_begin = is_function or _CALL.startswith(rest) or _FUNCTION.startswith(rest)
        return self._written.tail if may_begin else self._written.end

    def _emit(self, events: list[Event], end: int) -> None:
        """Emit the text before a position."""
        if text := self._written.take(end):
            events.append(self._delta(text))
