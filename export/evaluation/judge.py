"""Judges an answer by exact match of the message that a client of the server would see."""

from __future__ import annotations

import json
from typing import Any

from qwonnx.export.evaluation.suite import Question
from qwonnx.runtime.text.answer_events import ContentDelta, ToolCall, with_whole_calls
from qwonnx.runtime.text.output_parser import OutputParser


def is_right(question: Question, text: str, *, thinking_open: bool) -> bool:
    """Compare a complete answer with the expected message.

    Thinking does not count. The content must be equal, except for surrounding white space. The tool calls must be equal
    in number, order, names and arguments. Arguments compare as JSON values: 1 equals 1.0, but not "1" or true.

    Args:
        question: with the expected message.
        text: the answer, as the model wrote it after the prompt.
        thinking_open: the prompt ended inside <think>.
    """
    parser = OutputParser(thinking_open, question.tools or None)
    events = with_whole_calls([*parser.push(text), *parser.finish()])
    content = "".join(event.text for event in events if isinstance(event, ContentDelta))
    calls = [event for event in events if isinstance(event, ToolCall)]
    return (
        content.strip() == question.content
        and len(calls) == len(question.calls)
        and all(
            call.name == expected.name and _same(json.loads(call.arguments_json), expected.arguments)
            for call, expected in zip(calls, question.calls, strict=True)
        )
    )


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values; to Python's own, true equals 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
