"""Read one function of a tool call while it is written, and give out its arguments as they become certain.

    <function=NAME> <parameter=KEY> value </parameter> ... </function>

A string's text goes out as it comes; another value when it is complete (tool_arguments.py gives values their types).
The call opens with its first argument, or at its end. Before, it may still turn out to be text; after, it stays a call:
- A parameter that is given twice or has no name closes it. From that parameter on to its end, the function is text.
- If the answer ends in it, it closes with what there is. If the answer was cut off, a call whose name is complete stays
  open, and what is undecided in it is left out: its arguments are a beginning of what they would have been.
"""

from __future__ import annotations

from qwonnx.runtime.text.answer_events import (
    ArgumentsDelta,
    CallClosed,
    CallOpened,
    ContentDelta,
    Event,
    ReasoningDelta,
)
from qwonnx.runtime.text.call_tags import FoundTag, Tag, TaggedText
from qwonnx.runtime.text.call_values import CallTags, ValueEnd, ValueReader
from qwonnx.runtime.text.parser_fallbacks import PARSER_FALLBACKS
from qwonnx.runtime.text.tool_arguments import ToolSchemas, text_json

_MOST_FORGIVEN = 64  # values without </parameter> in a function: each costs a look at all that follow


class FunctionReader:
    """Reads one function.

    Args:
        written: the text, from what may be part of the call on; its opening tag has come, and a tag follows that or the
            answer was cut off.
        calls: the tags of the text.
        schemas: of the tools.
        index: of the opening tag.
        text: the kind of text that the function is if it is no call.
        opens_late: the call opens at its end, so that all of it is text if it does not come.

    index: of the first tag that was not read.
    """

    def __init__(
        self,
        written: TaggedText,
        calls: CallTags,
        schemas: ToolSchemas,
        index: int,
        text: type[ReasoningDelta] | type[ContentDelta],
        *,
        opens_late: bool = False,
    ) -> None:
        opening = written.tags[index]
        self.index = index + 1
        self._written = written
        self._calls = calls
        self._schemas = schemas
        self._name = opening.name
        self._text = text
        self._opens_late = opens_late
        self._missing = set(schemas.parameters(opening.name))
        self._given: set[str] = set()
        self._num_forgiven = 0  # values whose </parameter> is missing
        self._value: _Value | None = None
        self._has_arguments = False
        self._said: list[str] = []  # of the arguments, not given out
        self._raw = [written.take(opening.end)]  # all of the text, until the call opens
        self._is_open = False
        self._is_announced = False
        self._is_wrong = False

    @property
    def is_wrong(self) -> bool:
        """Whether its rest is text."""
        return self._is_wrong

    def advance(self, events: list[Event]) -> bool:
        """Add what is certain to the events; whether the function has ended."""
        if not self._name:
            self._fail(events)
        tags = self._written.tags
        while self._value is not None or self.index < len(tags):
            if self._value is None:
                tag = tags[self.index]
                if self._calls.ends_function(tag):
                    is_own = tag.tag is Tag.FUNCTION_END
                    self._skip(events, tag.end if is_own else tag.start)
                    self.index += is_own
                    self._close(events)
                    return True
                self._begin(events, tag)
            if not self._read(events):
                self._flush(events)
                return False
        self._skip(events, self._written.end)  # white space: the answer has ended
        self._close(events)
        return True

    def cut(self, events: list[Event]) -> None:
        """The answer was cut off."""
        if self._is_wrong or self._opens_late:
            self._give_up(events)
            return
        value = self._value
        if value is not None and not value.is_said:
            begun = '"'
            if not value.is_text:
                begun = self._schemas.begun_json(self._name, value.name, "".join(value.parts))
            if begun:
                self._argue(self._member(value.name) + begun)
        if not self._has_arguments:
            self._argue("{")
        self._flush(events)
        self._written.take(self._written.end)

    def _give_up(self, events: list[Event]) -> None:
        """The answer has ended before it was a call: it is text."""
        self._fail(events)
        self._skip(events, self._written.end)

    def _begin(self, events: list[Event], opening: FoundTag) -> None:
        """Begin a parameter."""
        name = opening.name
        self._skip(events, opening.start)
        if self._is_unfit(self.index):
            self._fail(events)
        self._skip(events, opening.end)
        self._given.add(name)
        self._missing.discard(name)
        missing = self._missing if self._num_forgiven < _MOST_FORGIVEN else frozenset()
        reader = ValueReader(self._written, self._calls, self.index, missing)
        self._value = _Value(name, reader, self._schemas.is_text(self._name, name))

    def _read(self, events: list[Event]) -> bool:
        """Read on in the value; whether it has ended."""
        value = self._value
        assert value is not None, "a value has begun"
        end = value.reader.read()
        if end is not None and end.is_forced and not (self._is_open or self._is_wrong):
            self._give_up(events)
            end = ValueEnd(self._written.end, len(self._written.tags))
        until = value.reader.certain() if end is None else end.start
        self._grow(events, value, self._written.before_break(until))
        if end is None:
            return False
        self._end(events, value, end)
        self._value, self.index = None, end.index
        return True

    def _grow(self, events: list[Event], value: _Value, until: int) -> None:
        """Take the text of a value up to a position."""
        text = self._taken(events, until)
        if not text or self._is_wrong:
            return
        if value.is_at_start:
            value.is_at_start = False
            text = text.removeprefix("\n")  # it belongs to the tag
        if not text:
            return
        if not value.is_text:
            value.parts.append(text)
            return
        if not value.is_said:
            value.is_said = True
            self._argue(f'{self._member(value.name)}"')
        self._argue(text_json(text))

    def _end(self, events: list[Event], value: _Value, end: ValueEnd) -> None:
        tags = self._written.tags
        self._num_forgiven += end.index < len(tags) and tags[end.index].start == end.start
        if not self._is_open and self._is_unfit(end.index):
            self._fail(events)
        if self._is_wrong:
            return
        if value.is_said:
            self._argue('"')
        else:
            json_text = self._schemas.value_json(self._name, value.name, "".join(value.parts))
            self._argue(self._member(value.name) + json_text)

    def _is_unfit(self, index: int) -> bool:
        """Whether a tag begins a parameter that the call cannot have."""
        tag = self._written.tags[index] if index < len(self._written.tags) else None
        return tag is not None and tag.tag is Tag.PARAMETER and (not tag.name or tag.name in self._given)

    def _member(self, name: str) -> str:
        before = ", " if self._has_arguments else "{"
        self._has_arguments = True
        return f'{before}"{text_json(name)}": '

    def _argue(self, text: str) -> None:
        self._said.append(text)
        self._is_open = not self._opens_late

    def _flush(self, events: list[Event]) -> None:
        if not self._is_open:
            return
        if not self._is_announced:
            self._is_announced = True
            events.append(CallOpened(self._name))
            self._raw.clear()
        if self._said:
            events.append(ArgumentsDelta("".join(self._said)))
            self._said.clear()

    def _close(self, events: list[Event]) -> None:
        """End a call."""
        if self._is_wrong:
            return
        self._said.append("}" if self._has_arguments else "{}")
        self._is_open = True
        self._flush(events)
        events.append(CallClosed())
        self._is_open = False

    def _fail(self, events: list[Event]) -> None:
        """The rest is text, and all of it if the call was not opened."""
        if self._is_wrong:
            return
        if self._is_open:
            self._close(events)
        elif raw := "".join(self._raw):
            events.append(self._text(raw))
        self._raw.clear()
        self._is_wrong = True
        PARSER_FALLBACKS.add()

    def _skip(self, events: list[Event], end: int) -> None:
        """Take text that is in no value."""
        self._taken(events, end)

    def _taken(self, events: list[Event], end: int) -> str:
        text = self._written.take(end)
        if text and self._is_wrong:
            events.append(self._text(text))
        elif not self._is_announced:
            self._raw.append(text)
        return text


class _Value:
    """A value that grows.

    is_text: it is given out as it comes; else its text waits in `parts`.
    is_said: its beginning is given out.
    """

    def __init__(self, name: str, reader: ValueReader, is_text: bool) -> None:
        self.name = name
        self.reader = reader
        self.is_text = is_text
        self.is_said = False
        self.is_at_start = True
        self.parts: list[str] = []
