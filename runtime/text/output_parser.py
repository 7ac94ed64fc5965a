"""Split a model's text into reasoning, content and tool calls, while it streams.

    reasoning </think> content <tool_call> <function=NAME> <parameter=KEY> value </parameter> </function> </tool_call>

Text is emitted as soon as it cannot be part of a tag; a tool call is emitted as a whole. The result does not depend on
how the text is cut into pieces. Only tags and the line breaks around them are removed; a malformed tool call becomes
content. tool_arguments.py converts values to the types of the tool's schema.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from qwonnx.runtime.text.stop_strings import longest_beginning
from qwonnx.runtime.text.tool_arguments import ToolSchemas

_THINK, _THINK_END = "<think>", "</think>"
_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"

_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
# A value ends where the next parameter or the function's end follows, so it may contain these tags itself.
_ARGUMENT = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*(?=<parameter=|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete call: the function's name, and its arguments as the JSON text of an object."""

    name: str
    arguments_json: str


Event = ReasoningDelta | ContentDelta | ToolCall


class _Part(Enum):
    REASONING = auto()
    OPENING = auto()  # only white space so far: a <think> may still begin the reasoning
    CONTENT = auto()
    CALL = auto()


class OutputParser:
    """Parses one answer.

    Args:
        thinking_open: the prompt ended inside <think>, so the text begins with reasoning.
        tools: the request's tools in OpenAI's form; without any, tool-call tags are ordinary text.
    """

    def __init__(self, thinking_open: bool, tools: Sequence[dict[str, Any]] | None = None) -> None:
        self._part = _Part.REASONING if thinking_open else _Part.OPENING
        self._schemas = ToolSchemas(tools or ())
        self._content_tags = (_CALL,) if tools else ()
        self._pending = ""
        self._searched = 0  # length of a pending tool call's text without an end tag
        self._skip_breaks = False  # line breaks that follow a closing tag belong to it

    @property
    def is_reasoning(self) -> bool:
        """Whether the next text is reasoning, as far as the parser knows."""
        return self._part is _Part.REASONING

    def push(self, text: str) -> list[Event]:
        """Take the next piece of text; return the events that are certain now."""
        self._pending += text
        events: list[Event] = []
        while self._advance(events):
            pass
        return events

    def finish(self) -> list[Event]:
        """End the answer; return the text that was held back, as events."""
        rest, self._pending = self._pending, ""
        if self._part is _Part.CALL:
            return [self._call(rest) or ContentDelta(_CALL + rest)]
        if self._skip_breaks:
            rest = rest.lstrip("\n")
        if not rest:
            return []
        return [ReasoningDelta(rest) if self._part is _Part.REASONING else ContentDelta(rest)]

    def _advance(self, events: list[Event]) -> bool:
        """Handle pending text in the present part; True if the part changed, so there may be more to do."""
        if self._skip_breaks:
            self._pending = self._pending.lstrip("\n")
            self._skip_breaks = not self._pending
        if self._part is _Part.CALL:
            return self._advance_call(events)
        if self._part is _Part.OPENING:
            return self._advance_opening()
        if self._part is _Part.REASONING:
            return self._advance_text(events, (_THINK_END,), ReasoningDelta)
        return self._advance_text(events, self._content_tags, ContentDelta)

    def _advance_opening(self) -> bool:
        stripped = self._pending.lstrip()
        if stripped.startswith(_THINK):
            self._pending = stripped[len(_THINK) :]
            self._part, self._skip_breaks = _Part.REASONING, True
            return True
        if _THINK.startswith(stripped):
            return False
        self._part = _Part.CONTENT
        return True

    def _advance_text(
        self, events: list[Event], tags: tuple[str, ...], delta: type[ReasoningDelta] | type[ContentDelta]
    ) -> bool:
        tag = next((tag for tag in tags if tag in self._pending), None)
        if tag is not None:
            text, self._pending = self._pending.split(tag, 1)
            text = text.rstrip("\n")
            self._part, self._skip_breaks = (_Part.CALL, False) if tag == _CALL else (_Part.CONTENT, True)
            self._searched = 0
        else:
            # Line breaks before a tag belong to it, and a beginning of a tag may become one.
            certain = len(self._pending) - longest_beginning(self._pending, tags)
            text = self._pending[:certain].rstrip("\n") if tags else self._pending
            self._pending = self._pending[len(text) :]
        if text:
            events.append(delta(text))
        return tag is not None

    def _advance_call(self, events: list[Event]) -> bool:
        end = self._pending.find(_CALL_END, self._searched)
        while end >= 0 and self._pending.rfind(_PARAMETER, 0, end) > self._pending.rfind(_PARAMETER_END, 0, end):
            end = self._pending.find(_CALL_END, end + 1)  # inside a value, so part of it
        if end < 0:
            self._searched = max(0, len(self._pending) - len(_CALL_END) + 1)
            return False
        block, self._pending = self._pending[:end], self._pending[end + len(_CALL_END) :]
        call = self._call(block)
        events.append(call or ContentDelta(_CALL + block + _CALL_END))
        self._part, self._skip_breaks = _Part.CONTENT, call is not None
        return True

    def _call(self, block: str) -> ToolCall | None:
        """The call between the tags, None if it is malformed."""
        function = _FUNCTION.fullmatch(block)
        if function is None:
            return None
        name, body = function[1].strip(), function[2]
        values: dict[str, str] = {}
        position = 0
        while (argument := _ARGUMENT.match(body, position)) is not None:
            key = argument[1].strip()
            if key in values:
                return None
            values[key] = argument[2]
            position = argument.end()
        if body[position:].strip():
            return None
        return ToolCall(name, self._schemas.arguments_json(name, values))
