"""Whether an answer is right: exact match of what a client of the server would have seen."""

from __future__ import annotations

import json
from typing import Any

from qwonnx.export.evaluation.suite import Question
from qwonnx.runtime.text.output_parser import ContentDelta, OutputParser, ToolCall


def is_right(question: Question, text: str, *, thinking_open: bool) -> bool:
    """Compare a complete answer with the expected message.

    What it thinks does not count. Its content must be equal up to surrounding white space, and its tool calls must be
    as many, in order, with equal names and equal arguments as JSON values: 1 and 1.0 are, 1 and "1" and true are not.

    Args:
        question: with the expected message.
        text: of the answer, as the model wrote it after the prompt.
        thinking_open: the prompt ended inside <think>.
    """
    parser = OutputParser(thinking_open, question.tools or None)
    events = [*parser.push(text), *parser.finish()]
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
    """Equality of JSON values; Python's own takes true for 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
