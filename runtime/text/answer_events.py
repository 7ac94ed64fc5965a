"""The events that a model's text becomes: reasoning, content, and tool calls that open, grow and close."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct


class ReasoningDelta(Struct, frozen=True):
    """More of the reasoning."""

    text: str


class ContentDelta(Struct, frozen=True):
    """More of the answer."""

    text: str


class CallOpened(Struct, frozen=True):
    """A call begins. Its arguments follow, and no other event does before it closes."""

    name: str  # of the function


class ArgumentsDelta(Struct, frozen=True):
    """More of the arguments of the open call: all deltas together are the JSON text of an object."""

    text: str


class CallClosed(Struct, frozen=True):
    """The open call is complete. An answer that is cut off within a call ends without it."""


Event = ReasoningDelta | ContentDelta | CallOpened | ArgumentsDelta | CallClosed


class ToolCall(Struct, frozen=True):
    """A complete call: the function's name, and its arguments as the JSON text of an object."""

    name: str
    arguments_json: str


def with_whole_calls(events: Iterable[Event]) -> list[ReasoningDelta | ContentDelta | ToolCall]:
    """The events, with each call in one piece; one that did not close has the arguments that there are."""
    whole: list[ReasoningDelta | ContentDelta | ToolCall] = []
    for event in events:
        match event:
            case CallOpened(name):
                whole.append(ToolCall(name, ""))
            case ArgumentsDelta(text):
                call = whole[-1]
                assert isinstance(call, ToolCall), "arguments belong to an open call"
                whole[-1] = ToolCall(call.name, call.arguments_json + text)
            case ReasoningDelta() | ContentDelta():
                whole.append(event)
            case CallClosed():
                pass
    return whole
