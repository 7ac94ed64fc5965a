"""Texts with tool calls, cut in every way: the same parts, every character accounted for, arguments of valid types.

    QWONNX_TEST_SPLITS=300000 python -m pytest tests/runtime/text/test_tool_call_splits.py

cuts each text in two at every place, and in 1,000 random ways; by default there are fewer cuts.
"""

from __future__ import annotations

import copy
import json
import os
import re
import time
from itertools import pairwise
from random import Random
from typing import Any

import jsonschema
import pytest

from qwonnx.runtime.text.answer_events import ArgumentsDelta, ContentDelta, Event, ReasoningDelta, ToolCall
from qwonnx.runtime.text.output_parser import OutputParser
from tests.runtime.text.answer_account import account, characters, events_of, merged, parse
from tests.runtime.text.tool_call_texts import TOOLS, Case, call, cases, parameter

NUM_SPLITS = int(os.environ.get("QWONNX_TEST_SPLITS", "12000"))
IS_FULL = NUM_SPLITS >= 300_000

CASES = cases()
RIGHT = ("a string", "text and two calls", "a function alone", "a type", "any parameter", "line breaks")


def test_there_are_some_hundred_texts_of_which_some_were_reported() -> None:
    assert len({(case.text, case.thinking_open) for case in CASES}) >= 340
    reported = {case.feature for case in CASES if "#" in case.feature}
    assert reported == {
        *("vllm#39056", "vllm#55495", "vllm#55497", "llama.cpp#24807", "llama.cpp#21771", "club-3090#72"),
        "ollama#14492",
    }


@pytest.mark.parametrize("case", [case for case in CASES if case.calls is not None], ids=lambda case: case.id)
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


def test_an_answer_may_end_anywhere() -> None:
    """The arguments are JSON, and no character is lost."""
    for case in CASES if IS_FULL else CASES[::4]:
        for end in range(0, len(case.text), 1 if IS_FULL else 3):
            events = parse([case.text[:end]], case.thinking_open)
            account(case.text[:end], events)
            for event in events:
                if isinstance(event, ToolCall):
                    assert isinstance(json.loads(event.arguments_json), dict)


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
        text, expected = case.text, parse([case.text], case.thinking_open)
        cut_short = parse([text], case.thinking_open, cut_off=True)
        assert parse(list(text), case.thinking_open) == expected
        for pieces in _splits(text, random):
            assert parse(pieces, case.thinking_open) == expected, pieces
            if random.random() < 0.25:
                assert parse(pieces, case.thinking_open, cut_off=True) == cut_short, pieces


def _splits(text: str, random: Random) -> list[list[str]]:
    share = NUM_SPLITS // len(CASES)
    in_two = range(len(text) + 1)
    places = [[cut] for cut in (in_two if IS_FULL else random.sample(in_two, min(share // 2, len(in_two))))]
    for _ in range(1000 if IS_FULL else share // 2):
        places.append(random.sample(in_two, min(random.randint(1, 8), len(in_two))))
    return [[text[start:end] for start, end in pairwise(sorted({0, len(text), *cuts}))] for cuts in places]


@pytest.mark.parametrize("case", CASES if IS_FULL else CASES[::6], ids=lambda case: case.id)
def test_what_was_emitted_is_never_taken_back(case: Case) -> None:
    """After any beginning of the text, the events so far are a beginning of the events of the whole."""
    whole = characters(events_of([case.text], case.thinking_open))
    parser, so_far = OutputParser(case.thinking_open, TOOLS), list[Any]()
    for character in case.text:
        so_far += characters(parser.push(character))
        assert so_far == whole[: len(so_far)]


@pytest.mark.parametrize("feature", [*RIGHT, "</parameter> twice", "no </function>"])
def test_a_call_that_is_cut_off_has_the_beginning_of_its_arguments(feature: str) -> None:
    for case in [case for case in CASES if case.feature == feature][:: 1 if IS_FULL else 3]:
        whole = parse([case.text], False)
        arguments = [event.arguments_json for event in whole if isinstance(event, ToolCall)]
        parser, so_far = OutputParser(False, TOOLS), []
        for place, character in enumerate(case.text):
            so_far += parser.push(character)
            cut = merged([*so_far, *copy.deepcopy(parser).finish(cut_off=True)])
            calls = [event for event in cut if isinstance(event, ToolCall)]
            for event, wanted in zip(calls, arguments, strict=False):
                # One with a value that its schema does not allow is a text, which shows only at its end.
                if re.search(r'"[nolmu]": "', wanted):
                    continue
                assert wanted.startswith(event.arguments_json), case.text[: place + 1]
            if "<parameter=" in case.text[: place + 1].rpartition("</tool_call>")[2].rpartition(">")[0]:
                assert calls, case.text[: place + 1]


HOSTILE = {
    "openings": "<tool_call>\n<function=f>\n<parameter=n>\n" * 300,
    "functions": "<function=f>\n<parameter=n>\n" * 300,
    "closings": "<tool_call>\n<function=f>\n<parameter=s>\n" + "</parameter>\n</function>\nx" * 300,
    "doubled closings": "<tool_call>\n<function=f>\n<parameter=s>\n" + "</parameter>\n" * 120,
    "other parameters": "<tool_call>\n<function=f>\n<parameter=s>\n" + "<parameter=n>\n1\n</parameter>x" * 300,
    "calls": "<tool_call>\n<function=none>\n</function>\n</tool_call>" * 120,
    "calls in a value": "<tool_call>\n<function=f>\n<parameter=s>\n" + call("", "none") * 300,
    "calls in a value that end late": "<function=f>\n<parameter=s>\n" * 700 + "\n</parameter>\n</function>" * 300,
    "parameters in a value": "<tool_call>\n<function=f>\n<parameter=s>\n" + "<parameter=n>\n<parameter=m>1" * 500,
    "pairs in a value": "<function=f>\n<parameter=s>\n" + "<parameter=n>1</parameter><parameter=m>" * 500,
    "a call in a value with many tags": "<function=f>\n<parameter=s>\nx <function=f>\n<parameter=n>\n"
    + "</parameter> y\n" * 300
    + "</parameter>\n</function> y",
    "a parameter twice": "<tool_call>\n<function=f>\n" + parameter("s", "x") * 500,
    "functions in thoughts": call(parameter("s", "x")) * 300 + call(parameter("s", "x"))[:-30],
    "line breaks": "\n" * 30_000,
    "white space": "<tool_call>" + " \n" * 15_000,
    "white space after a value": "<tool_call>\n<function=f>\n<parameter=s>\nx</parameter>" + " \n" * 15_000,
    "brackets": "<tool_call>\n<function=f>\n<parameter=s>\n" + "<" * 30_000,
    "beginnings of names": "<tool_call>\n<function=f>\n<parameter=s>\n" + ("<parameter=" + "n" * 1030) * 30,
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


def test_values_without_end_of_a_tool_with_many_parameters_take_little_time() -> None:
    names = [f"p{number}" for number in range(3000)]
    properties = {name: {"type": "string"} for name in names}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}]
    text = "<function=f>\n" + "".join(f"<parameter={name}>x" for name in names) + "</parameter></function>"
    started = time.process_time()
    (found,) = parse([text], False, tools)
    assert time.process_time() - started < 2
    assert isinstance(found, ToolCall)
    assert list(json.loads(found.arguments_json)) == names[:65]


@pytest.mark.parametrize(
    ("key", "value"),
    [("s", "x" * 100_000), ("s", "a <b>\n" * 17_000), ("l", json.dumps([1234567] * 11_000))],
    ids=["a string", "a string with brackets", "an array"],
)
def test_a_long_value_streams_in_linear_time(key: str, value: str) -> None:
    """100,000 characters, one by one: given out as they come, or when the value is complete."""
    text = call(parameter(key, value))
    parser, events = OutputParser(False, TOOLS), list[Event]()
    started = time.process_time()
    for character in text:
        events += parser.push(character)
    events += parser.finish()
    assert time.process_time() - started < 5
    assert merged(events) == parse([text], False)
    if key == "s":
        assert sum(isinstance(event, ArgumentsDelta) for event in events) > len(value) / 3


@pytest.mark.parametrize("before", ["", parameter("n", "1")], ids=["first", "second"])
def test_the_first_argument_comes_with_its_first_token(before: str) -> None:
    """A string of 20,000 characters, in tokens of four; its first delta has its text."""
    parser = OutputParser(False, TOOLS)
    parser.push(f"<tool_call>\n<function=f>\n{before}<parameter=s>\n")
    for _ in range(5000):
        (*_, said) = parser.push("abcd")
        assert isinstance(said, ArgumentsDelta)
        assert said.text.endswith("abcd")


def test_text_that_speaks_of_tags_does_not_wait() -> None:
    """After a tag that begins no call, all that was written is given out (club-3090#72)."""
    prose = "the <tool_call> tag, then <function=f> and\n<function=other> and <parameter=s> and </tool_call> or a < b. "
    for thinking_open in (False, True):
        parser, given = OutputParser(thinking_open, TOOLS), 0
        for number, character in enumerate(prose * 20, 1):
            events = parser.push(character)
            given += sum(len(event.text) for event in events if isinstance(event, ContentDelta | ReasoningDelta))
            assert number - given <= len("<function=f> ")
