"""Texts with tool calls, cut in every way: the same parts, every character accounted for, arguments of valid types.

    QWONNX_TEST_SPLITS=300000 python -m pytest tests/runtime/text/test_tool_call_splits.py

cuts the texts as often as for the claim; by default a share.
"""

from __future__ import annotations

import json
import os
import time
from itertools import pairwise
from random import Random
from typing import Any

import jsonschema
import pytest

from qwonnx.runtime.text.answer_events import ArgumentsDelta, ContentDelta, Event, ReasoningDelta, ToolCall
from qwonnx.runtime.text.output_parser import OutputParser
from tests.runtime.text.tool_call_texts import TOOLS, Case, account, cases, parse

NUM_SPLITS = int(os.environ.get("QWONNX_TEST_SPLITS", "12000"))

CASES = cases()


def test_there_are_some_hundred_texts() -> None:
    assert len({(case.text, case.thinking_open) for case in CASES}) >= 300


@pytest.mark.parametrize("case", [case for case in CASES if case.calls is not None], ids=lambda case: case.text[:60])
def test_calls_are_read_right_or_not_at_all(case: Case) -> None:
    events = parse([case.text], case.thinking_open)
    calls = [(event.name, json.loads(event.arguments_json)) for event in events if isinstance(event, ToolCall)]
    assert calls == case.calls
    if not case.calls and "</think>" not in case.text:
        assert "".join(event.text for event in events if not isinstance(event, ToolCall)) == case.text


def test_every_character_is_accounted_for_and_arguments_have_the_types_of_their_schema() -> None:
    for case in CASES:
        events = parse([case.text], case.thinking_open)
        account(case.text, events)
        for event in events:
            if isinstance(event, ToolCall):
                _check_types(event)


def _check_types(event: ToolCall) -> None:
    """A value is valid by its schema, or it is the model's text, which fits no type that is not a string."""
    schemas: dict[str, Any] = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in TOOLS}
    root = schemas.get(event.name, {})
    for key, value in json.loads(event.arguments_json).items():
        schema = root.get("properties", {}).get(key, root.get("additionalProperties", True))
        whole = {**schema, "$defs": root.get("$defs", {})} if isinstance(schema, dict) else schema
        if not jsonschema.Draft202012Validator(whole).is_valid(value):
            assert isinstance(value, str)
            try:
                read = json.loads(value)
            except ValueError:
                continue
            # JSON has no infinity.
            assert read == float("inf") or not jsonschema.Draft202012Validator(whole).is_valid(read)


def test_how_the_text_is_cut_makes_no_difference() -> None:
    random = Random(0)
    for case in CASES:
        expected = parse([case.text], case.thinking_open)
        assert parse(list(case.text), case.thinking_open) == expected
        for _ in range(max(1, NUM_SPLITS // len(CASES) - 1)):
            cuts = random.sample(range(len(case.text) + 1), min(random.randint(1, 8), len(case.text) + 1))
            pieces = [case.text[start:end] for start, end in pairwise(sorted({0, len(case.text), *cuts}))]
            assert parse(pieces, case.thinking_open) == expected, pieces


@pytest.mark.parametrize("case", CASES[:: max(1, len(CASES) // 40)], ids=lambda case: case.text[:60])
def test_what_was_emitted_is_never_taken_back(case: Case) -> None:
    """After any beginning of the text, the events so far are a beginning of the events of the whole."""
    parser = OutputParser(case.thinking_open, TOOLS)
    whole = _characters([*parser.push(case.text), *parser.finish()])
    parser, so_far = OutputParser(case.thinking_open, TOOLS), list[Any]()
    for character in case.text:
        so_far += _characters(parser.push(character))
        assert so_far == whole[: len(so_far)]


def _characters(events: list[Event]) -> list[Any]:
    return [
        item
        for event in events
        for item in (
            [(type(event), char) for char in event.text]
            if isinstance(event, ReasoningDelta | ContentDelta | ArgumentsDelta)
            else [event]
        )
    ]


HOSTILE = {
    "openings": "<tool_call>\n<function=f>\n<parameter=n>\n" * 300,
    "functions": "<function=f>\n<parameter=n>\n" * 300,
    "closings": "<tool_call>\n<function=f>\n<parameter=s>\n" + "</parameter>\n</function>\nx" * 300,
    "doubled closings": "<tool_call>\n<function=f>\n<parameter=s>\n" + "</parameter>\n" * 120,
    "other parameters": "<tool_call>\n<function=f>\n<parameter=s>\n" + "<parameter=n>\n1\n</parameter>x" * 300,
    "calls": "<tool_call>\n<function=none>\n</function>\n</tool_call>" * 120,
}


@pytest.mark.parametrize("thinking_open", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_that_repeats_tags_does_not_take_the_time_of_others(name: str, thinking_open: bool) -> None:
    text = HOSTILE[name]
    pieces = [text[start : start + 4] for start in range(0, len(text), 4)]
    started = time.process_time()
    events = parse(pieces, thinking_open)
    assert time.process_time() - started < 5
    assert events == parse([text], thinking_open)
