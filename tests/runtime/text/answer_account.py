"""Parse a text in pieces, and follow the parts through the text: a second reader, which looks for what was lost.

account() fails if a character is neither in a part nor in the tags of a call or of thoughts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from qwonnx.runtime.text.answer_events import (
    ArgumentsDelta,
    CallClosed,
    CallOpened,
    ContentDelta,
    Event,
    ReasoningDelta,
    ToolCall,
    with_whole_calls,
)
from qwonnx.runtime.text.output_parser import OutputParser
from tests.runtime.text.tool_call_texts import TOOLS

Joined = ReasoningDelta | ContentDelta | ToolCall


def parse(
    pieces: Sequence[str],
    thinking_open: bool,
    tools: list[dict[str, Any]] | None = TOOLS,
    *,
    cut_off: bool = False,
) -> list[Joined]:
    """The events of an answer that comes in these pieces; texts of one kind that follow each other are joined."""
    return merged(events_of(pieces, thinking_open, tools, cut_off=cut_off))


def events_of(
    pieces: Sequence[str],
    thinking_open: bool,
    tools: list[dict[str, Any]] | None = TOOLS,
    *,
    cut_off: bool = False,
) -> list[Event]:
    """The events of an answer. They are in order, none is empty, and only an answer that was cut off has an open call.

    Raises:
        AssertionError: they are not.
    """
    parser = OutputParser(thinking_open, tools)
    events = [event for piece in pieces for event in parser.push(piece)]
    events += parser.finish(cut_off=cut_off)
    is_open = False
    for event in events:
        assert is_open == isinstance(event, ArgumentsDelta | CallClosed), event
        is_open = isinstance(event, CallOpened | ArgumentsDelta)
        assert isinstance(event, CallOpened | CallClosed) or event.text
    assert cut_off or not is_open
    return events


def merged(events: Sequence[Event]) -> list[Joined]:
    """Join each call, and adjacent deltas of one kind; streaming may change nothing else."""
    joined: list[Joined] = []
    for event in with_whole_calls(events):
        last = joined[-1] if joined else None
        if isinstance(event, ReasoningDelta) and isinstance(last, ReasoningDelta):
            joined[-1] = ReasoningDelta(last.text + event.text)
        elif isinstance(event, ContentDelta) and isinstance(last, ContentDelta):
            joined[-1] = ContentDelta(last.text + event.text)
        else:
            joined.append(event)
    return joined


def characters(events: Sequence[Event]) -> list[Any]:
    """The events, one for each character."""
    return [
        item
        for event in events
        for item in (
            [event]
            if isinstance(event, CallOpened | CallClosed)
            else [(type(event), character) for character in event.text]
        )
    ]


def account(text: str, events: Sequence[Joined]) -> None:
    """Follow the events through the text; what stands between them must be tags of thoughts or calls.

    Raises:
        AssertionError: a character is not accounted for, or an event is not in the text.
    """
    ends = {0}
    for event in events:
        ends = {end for start in ends for end in _ends_after(text, start, event)}
        assert ends, f"{event} is not there"
    assert any(_BETWEEN.fullmatch(text, end) for end in ends), f"lost: {[text[end:] for end in ends]}"


# Between events: closing tags and line breaks, or the tags of thoughts.
_BETWEEN = re.compile(r"\s*(?:</tool_call>\s*)?\n*(?:<think>\n*)?(?:\n*</think>\n*)?\n*")
_CLOSING = r"(?:</function>\s*(?:</tool_call>\s*)?|</tool_call>\s*)"
# A value ends before a closing tag, before the next parameter, before the tags that close the call and end the answer,
# or with the answer.
_AFTER_VALUE = re.compile(rf"(?=\n?</parameter>|\n?<parameter=|\n?{_CLOSING}?\Z)")


def _ends_after(text: str, start: int, event: Joined) -> Iterator[int]:
    gaps = (_BETWEEN.fullmatch(text, start, end) for end in range(start, len(text) + 1))
    for gap in (found.end() for found in gaps if found is not None):
        if not isinstance(event, ToolCall):
            if text.startswith(event.text, gap):
                yield gap + len(event.text)
            continue
        opening = re.compile(r"(?:<tool_call>\s*)?<function=\s*" + re.escape(event.name) + r"\s*>").match(text, gap)
        if opening is not None:
            yield from _after_arguments(text, opening.end(), list(json.loads(event.arguments_json).items()))


def _after_arguments(text: str, start: int, arguments: list[tuple[str, Any]]) -> Iterator[int]:
    if not arguments:
        end = re.compile(r"\s*(?:</function>)?").match(text, start)
        assert end is not None
        yield end.end()
        return
    (key, value), *rest = arguments
    opening = re.compile(r"\s*<parameter=\s*" + re.escape(key) + r"\s*>").match(text, start)
    if opening is None:
        return
    for place in _AFTER_VALUE.finditer(text, opening.end()):
        closing = re.compile(r"\n?(?:</parameter>\s*)*").match(text, place.start())
        assert closing is not None
        raw = text[opening.end() : place.start()].removeprefix("\n")
        for whole in {raw, raw.removesuffix("\n")}:
            if whole == value or (not isinstance(value, str) and _reads(whole, value)):
                yield from _after_arguments(text, closing.end(), rest)


def _reads(text: str, value: Any) -> bool:
    constants = {"None": None, "True": True, "False": False}
    try:
        return bool((constants[text.strip()] if text.strip() in constants else json.loads(text)) == value)
    except ValueError:
        return False
