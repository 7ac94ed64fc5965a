"""Split a model's text into reasoning, content and tool calls, while it streams.

    reasoning </think> content <tool_call> <function=NAME> <parameter=KEY> value </parameter> </function> </tool_call>

Text is emitted as soon as it cannot be part of a call or a tag; a tool call is emitted as a whole. Nothing that was
emitted is taken back, and the result does not depend on how the text is cut into pieces. Only tags and the line breaks
around them are removed: what is no call stays text, character for character (tool_call_text.py says what a call is).

- <tool_call> begins a call of any function, because the model may make up a name; <function=NAME> alone only of an
  offered one.
- A call in the reasoning is a part of it if </think> follows. If the answer ends without </think>, a complete call of
  an offered function counts. So such text waits for the one or the other.

tool_arguments.py converts values to the types of the tool's schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from qwonnx.runtime.text.answer_events import (
    ArgumentsDelta,
    CallClosed,
    CallOpened,
    ContentDelta,
    Event,
    ReasoningDelta,
)
from qwonnx.runtime.text.stop_strings import longest_beginning
from qwonnx.runtime.text.tool_arguments import ToolSchemas
from qwonnx.runtime.text.tool_call_text import CallReader, FoundTag, FunctionCall, NoCall, Tag, TaggedText

_THINK, _THINK_END = "<think>", "</think>"
_CALL, _FUNCTION = "<tool_call>", "<function="
# A call with so many tags in its values is looked at again only when it has a quarter more, and is text if the answer
# ends within it: a model that repeats tags must not take the time of others.
_MANY_TAGS = 256


class _Part(Enum):
    REASONING = auto()
    OPENING = auto()  # only white space so far: a <think> may still begin the reasoning
    CONTENT = auto()
    AFTER_FUNCTION = auto()  # </tool_call> or another function may follow


@dataclass(frozen=True, slots=True)
class _Scan:
    """What the text begins with: `start` characters that are certainly not of a call, then a call, or what may be one.

    call: complete; None if the text from start on must wait, or if nothing is left there.
    """

    start: int
    call: FunctionCall | None = None
    in_tool_call: bool = False
    is_value: bool = False  # what must wait stands within a value


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
        self._pending = TaggedText()
        self._delta: type[ReasoningDelta] | type[ContentDelta] = ReasoningDelta if thinking_open else ContentDelta
        self._skip_breaks = False  # line breaks that follow a closing tag belong to it
        self._in_tool_call = False  # the last function was in a <tool_call>
        self._is_final = False
        self._tags_seen: int | None = None  # the text waits for more tags than these, whatever else comes
        self._has_called = False  # in the reasoning: a call waits for </think> or the end
        self._thought = 0  # characters in which no </think> begins

    @property
    def is_reasoning(self) -> bool:
        """Whether the next text is reasoning, as far as the parser knows."""
        return self._part is _Part.REASONING

    def push(self, text: str) -> list[Event]:
        """Take the next piece of text; return the events that are certain now."""
        self._pending.append(text)
        events: list[Event] = []
        while self._advance(events):
            pass
        return events

    def finish(self) -> list[Event]:
        """End the answer; return the text that was held back, as events."""
        events = self._rest()
        if self._part is _Part.REASONING and self._has_tools and len(self._pending.tags) <= _MANY_TAGS:
            self._part = _Part.CONTENT  # no </think> came: calls count, and the other text stays reasoning
            events += self._rest()
        if len(self._pending.tags) <= _MANY_TAGS:
            self._is_final = True
            events += self._rest()
        self._emit(events, len(self._pending.text))
        return events

    def _rest(self) -> list[Event]:
        """Look at all pending text again."""
        self._tags_seen = None
        return self.push("")

    def _advance(self, events: list[Event]) -> bool:
        """Handle pending text in the present part; True if there may be more to do."""
        if self._skip_breaks and self._part is not _Part.AFTER_FUNCTION:
            text = self._pending.text
            self._pending.drop(len(text) - len(text.lstrip("\n")))
            self._skip_breaks = not self._pending.text
        if not self._pending.text:
            return False
        if self._part is _Part.OPENING:
            return self._advance_opening()
        if self._part is _Part.REASONING:
            return self._advance_reasoning(events)
        if not self._has_tools:
            self._emit(events, len(self._pending.text))
            return False
        if self._waits_for_tags():
            return False
        return self._advance_after_function(events) if self._part is _Part.AFTER_FUNCTION else self._read_call(events)

    def _advance_opening(self) -> bool:
        stripped = self._pending.text.lstrip()
        if stripped.startswith(_THINK):
            self._pending.drop(len(self._pending.text) - len(stripped) + len(_THINK))
            self._part, self._delta, self._skip_breaks = _Part.REASONING, ReasoningDelta, True
            return True
        if _THINK.startswith(stripped) and not self._is_final:
            return False
        self._part = _Part.CONTENT
        return True

    def _advance_reasoning(self, events: list[Event]) -> bool:
        text = self._pending.text
        end = text.find(_THINK_END, self._thought)
        if end >= 0:
            self._emit(events, len(text[:end].rstrip("\n")))
            self._pending.drop(len(_THINK_END) + end - (len(text) - len(self._pending.text)))
            self._part, self._delta, self._skip_breaks = _Part.CONTENT, ContentDelta, True
            self._tags_seen = None
            return True
        if not self._has_called and not self._waits_for_tags():
            certain = len(text) - longest_beginning(text, (_THINK_END,))
            if self._has_tools:
                scan = self._scan(only_offered=True)
                self._has_called = scan.call is not None
                certain = min(certain, scan.start)
            self._emit(events, len(text[:certain].rstrip("\n")))
            if self._has_tools and scan.is_value:
                self._tags_seen = len(self._pending.tags)
        self._thought = max(0, len(self._pending.text) - len(_THINK_END) + 1)
        return False

    def _read_call(self, events: list[Event]) -> bool:
        """Emit text up to a call, and the call."""
        scan = self._scan(only_offered=self._delta is ReasoningDelta)
        text = self._pending.text
        certain = len(text) if self._is_final and scan.call is None else len(text[: scan.start].rstrip("\n"))
        self._emit(events, certain)
        if scan.call is None:
            self._tags_seen = len(self._pending.tags) if scan.is_value else None
            return False
        self._call(events, scan.call, scan.call.end - certain)
        self._in_tool_call = scan.in_tool_call
        return True

    def _advance_after_function(self, events: list[Event]) -> bool:
        reader = self._reader()
        tag = reader.tag_at(0, 0)
        if isinstance(tag, NoCall) and tag.is_unfinished:
            return False
        self._part, self._skip_breaks = _Part.CONTENT, True
        if isinstance(tag, FoundTag) and tag.tag is Tag.CALL_END:
            self._pending.drop(tag.end)
        elif isinstance(tag, FoundTag) and tag.tag is Tag.FUNCTION and self._may_call(tag.name):
            call = reader.function(0)
            if isinstance(call, FunctionCall):
                self._call(events, call, call.end)
            elif call.resume is None:
                self._part = _Part.AFTER_FUNCTION
                self._tags_seen = len(self._pending.tags) if self._ends_in_value() else None
                return False
            else:  # all of it is text
                text = self._pending.text[: call.resume].lstrip("\n")
                self._pending.drop(call.resume - len(text))
                self._skip_breaks = False
                self._emit(events, len(text))
        return True

    def _may_call(self, name: str) -> bool:
        """Whether a function may follow another one at once."""
        return name in self._schemas.names or (self._in_tool_call and self._delta is ContentDelta)

    def _scan(self, *, only_offered: bool) -> _Scan:
        """Look for the first call."""
        tags, reader = self._pending.tags, self._reader()
        resume = 0
        for index, tag in enumerate(tags):
            in_tool_call = tag.tag is Tag.CALL
            if tag.start < resume:
                continue
            if in_tool_call:
                following = reader.tag_at(tag.end, index + 1)
                if isinstance(following, NoCall):
                    if following.is_unfinished:
                        return _Scan(tag.start)
                    continue
                if following.tag is not Tag.FUNCTION:
                    continue
                if only_offered and following.name not in self._schemas.names:
                    continue
            elif tag.tag is not Tag.FUNCTION or tag.name not in self._schemas.names:
                continue
            call = reader.function(index + 1 if in_tool_call else index)
            if isinstance(call, FunctionCall):
                return _Scan(tag.start, call, in_tool_call)
            if call.resume is None:
                return _Scan(tag.start, is_value=self._ends_in_value())
            resume = call.resume
        return _Scan(len(self._pending.text) - self._unfinished_tag())

    def _unfinished_tag(self) -> int:
        """Length of the end of the text that may become the first tag of a call."""
        text = self._pending.text
        rest = text[start:] if (start := text.rfind("<")) >= 0 else ""
        named = rest.removeprefix(_FUNCTION).strip()
        begins_function = rest.startswith(_FUNCTION) and any(name.startswith(named) for name in self._schemas.names)
        return len(rest) if rest and (begins_function or _CALL.startswith(rest) or _FUNCTION.startswith(rest)) else 0

    def _reader(self) -> CallReader:
        return CallReader(self._pending, self._schemas.names, self._schemas.parameters, is_final=self._is_final)

    def _ends_in_value(self) -> bool:
        """Whether the text ends within a value, so that nothing but another tag matters."""
        tail = self._pending.tags[-1].end
        start = len(self._pending.text) - len(self._pending.text[tail:].lstrip())  # copies only what is after all tags
        is_within = start < len(self._pending.text) and not self._pending.may_become_tag(start)
        return is_within or len(self._pending.tags) > _MANY_TAGS

    def _waits_for_tags(self) -> bool:
        if self._tags_seen is None:
            return False
        wanted = self._tags_seen + (1 if self._tags_seen < _MANY_TAGS else self._tags_seen // 4)
        if len(self._pending.tags) < wanted:
            return True
        self._tags_seen = None
        return False

    def _emit(self, events: list[Event], length: int) -> None:
        """Emit the first characters of the pending text."""
        if length:
            events.append(self._delta(self._pending.text[:length]))
            self._pending.drop(length)

    def _call(self, events: list[Event], call: FunctionCall, end: int) -> None:
        """Emit a call whose text ends there."""
        arguments = self._schemas.arguments_json(call.name, call.values)
        events += [CallOpened(call.name), ArgumentsDelta(arguments), CallClosed()]
        self._pending.drop(end)
        self._part = _Part.AFTER_FUNCTION
        self._tags_seen = None
