from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.runtime.text.answer_events import CallClosed, CallOpened, ContentDelta, Event, ReasoningDelta, ToolCall
from qwonnx.runtime.text.output_parser import OutputParser
from qwonnx.runtime.text.parser_fallbacks import PARSER_FALLBACKS
from tests.runtime.text.answer_account import Joined, merged

pytestmark = pytest.mark.fast

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"type": "string"}}},
        },
    }
]
PARAMETERS = "<parameter=n>\n5\n</parameter>\n<parameter=s>\n5\n</parameter>\n"
CALL = f"<tool_call>\n<function=f>\n{PARAMETERS}</function>\n</tool_call>"
F = ToolCall("f", '{"n": 5, "s": "5"}')


def _parse(pieces: list[str], thinking_open: bool, tools: list[dict[str, Any]] | None) -> list[Event]:
    parser = OutputParser(thinking_open, tools)
    events = [event for piece in pieces for event in parser.push(piece)]
    return [*events, *parser.finish()]


CASES: list[tuple[str, str, bool, bool, list[Joined]]] = [
    ("an answer", "Hello\n world", False, True, [ContentDelta("Hello\n world")]),
    ("thinking and an answer", "hm\nhm\n</think>\n\nYes", True, True, [ReasoningDelta("hm\nhm"), ContentDelta("Yes")]),
    ("thinking that never ends", "hm </thin\n", True, True, [ReasoningDelta("hm </thin\n")]),
    ("empty thinking", "\n</think>\n\nYes", True, False, [ContentDelta("Yes")]),
    ("thinking the model opens", "\n<think>\nhm</think>x", False, True, [ReasoningDelta("hm"), ContentDelta("x")]),
    ("a tag of thinking later on", "So <think> is a tag", False, True, [ContentDelta("So <think> is a tag")]),
    ("white space alone", " \n ", False, True, [ContentDelta(" \n ")]),
    ("a call", f"{CALL}\n", False, True, [F]),
    ("two calls after text", f"See.\n\n{CALL}\n{CALL}", False, True, [ContentDelta("See."), F, F]),
    ("a call after thinking", f"hm\n</think>\n\n{CALL}", True, True, [ReasoningDelta("hm"), F]),
    ("text after a call", f"{CALL}\n\nDone.\n", False, True, [F, ContentDelta("Done.\n")]),
    ("a call without tools", CALL, False, False, [ContentDelta(CALL)]),
    ("a call without its last tag", CALL.removesuffix("</tool_call>"), False, True, [F]),
    ("a call cut short", CALL[:60], False, True, [ContentDelta(CALL[:60])]),
    (
        "a call in JSON, which is not the format",
        'Hm\n<tool_call>\n{"name": "f"}\n</tool_call>\nx',
        False,
        True,
        [ContentDelta('Hm\n<tool_call>\n{"name": "f"}\n</tool_call>\nx')],
    ),
    (
        "a parameter given twice",
        "<tool_call><function=f><parameter=n>1</parameter><parameter=n>2</parameter></function></tool_call>!",
        False,
        True,
        [
            ContentDelta(
                "<tool_call><function=f><parameter=n>1</parameter><parameter=n>2</parameter></function></tool_call>!"
            )
        ],
    ),
    (
        "a value that speaks of tags",
        "<tool_call>\n<function=f>\n<parameter=s>\na </tool_call> b\n</parameter> c\n<tool_call>\n</parameter>\n"
        "</function>\n</tool_call>",
        False,
        True,
        [ToolCall("f", json.dumps({"s": "a </tool_call> b\n</parameter> c\n<tool_call>"}))],
    ),
    (
        "a value of several lines with breaks of its own",
        "<tool_call>\n<function=f>\n<parameter=s>\n\n  x\n\n</parameter>\n</function>\n</tool_call>",
        False,
        True,
        [ToolCall("f", '{"s": "\\n  x\\n"}')],
    ),
    (
        "a function without parameters",
        "<tool_call>\n<function=g>\n</function>\n</tool_call>",
        False,
        True,
        [ToolCall("g", "{}")],
    ),
]
BY_NAME = pytest.mark.parametrize(
    ("text", "thinking_open", "with_tools", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)


@BY_NAME
def test_the_text_is_parsed_and_no_cut_in_two_changes_it(
    text: str, thinking_open: bool, with_tools: bool, expected: list[Joined]
) -> None:
    tools = TOOLS if with_tools else None
    for cut in range(len(text) + 1):
        assert merged(_parse([text[:cut], text[cut:]], thinking_open, tools)) == expected
    assert merged(_parse(list(text), thinking_open, tools)) == expected


@BY_NAME
def test_no_delta_is_empty(text: str, thinking_open: bool, with_tools: bool, expected: list[Joined]) -> None:
    for event in _parse(list(text), thinking_open, TOOLS if with_tools else None):
        assert isinstance(event, CallOpened | CallClosed) or event.text


F_OPEN = "<tool_call>\n<function=f>\n"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (F_OPEN + "<parameter=s>\n", '{"s": "'),
        (F_OPEN + "<parameter=s>\nab\n", '{"s": "ab'),
        (F_OPEN + "<parameter=s>\nab\n</par", '{"s": "ab'),
        (F_OPEN + "<parameter=s>\nab\n</parameter>\n</fun", '{"s": "ab'),
        (F_OPEN + "<parameter=s>\nab <b", '{"s": "ab <b'),
        (F_OPEN.rstrip(), "{"),
        (F_OPEN + "<par", "{"),
        ("<function=f>\n", "{"),
        (F_OPEN + "<parameter=n>\n", "{"),
        (F_OPEN + "<parameter=n>\n12", '{"n": 12'),
        (F_OPEN + "<parameter=n>\n12\n</parameter>\n<parameter=s>", '{"n": 12, "s": "'),
        (
            F_OPEN + "<parameter=n>\n12\n</parameter>\n<parameter=s>\nab\n<parameter=n>",
            '{"n": 12, "s": "ab\\n<parameter=n>',
        ),
        (F_OPEN + "<parameter=s>\nab\n<parameter=n>\n1", '{"s": "ab'),
    ],
)
def test_a_call_that_is_cut_off_stays_open(text: str, arguments: str) -> None:
    for pieces in ([text], list(text)):
        parser = OutputParser(False, TOOLS)
        events = [event for piece in pieces for event in parser.push(piece)] + parser.finish(cut_off=True)
        assert merged(events) == [ToolCall("f", arguments)]
        assert not any(isinstance(event, CallClosed) for event in events)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        F_OPEN[:-2],
        F_OPEN + "text",
        F_OPEN + "<parameter=s>"[:-1] + "\n",
        "<tool_call>\n<function= >\n",
        "<tool_call>\n<tool_call>",
        "<function=other>\n",
        "<function=other>\n<parameter=s>\nx",
    ],
)
def test_what_is_cut_off_before_the_name_of_a_call_is_complete_is_text(text: str) -> None:
    parser = OutputParser(False, TOOLS)
    assert merged([*parser.push(text), *parser.finish(cut_off=True)]) == [ContentDelta(text)]


def test_a_second_function_that_is_cut_off_stays_open() -> None:
    for opening in ("<function=other>\n", "</tool_call>\n<tool_call>\n<function=other>"):
        parser = OutputParser(False, TOOLS)
        text = CALL.removesuffix("</tool_call>") + opening
        assert merged([*parser.push(text), *parser.finish(cut_off=True)]) == [F, ToolCall("other", "{")]


def test_thoughts_that_are_cut_off_in_a_call_stay_thoughts() -> None:
    for text in (F_OPEN, F_OPEN + "<parameter=s>\nab", F_OPEN + "<parameter=n>\n1\n</parameter>\n<parameter=s>\nab"):
        parser = OutputParser(True, TOOLS)
        assert merged([*parser.push(text), *parser.finish(cut_off=True)]) == [ReasoningDelta(text)]
    parser = OutputParser(True, TOOLS)
    assert merged([*parser.push(CALL), *parser.finish(cut_off=True)]) == [F]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("An answer.", 0),
        (CALL, 0),
        (f"{CALL}\n{CALL}", 0),
        ("<tool_call>\n{}\n</tool_call>", 1),
        ("<tool_call>", 1),
        (F_OPEN + "<parameter=n>\n1", 1),
        (F_OPEN + "<parameter=s>\n1", 0),
        (CALL.replace("=n>", "=s>"), 1),
    ],
)
def test_what_looked_like_a_call_and_is_text_is_counted(text: str, count: int) -> None:
    for thinking_open in (False, True):
        before = PARSER_FALLBACKS.total
        _parse(list(f"{text}</think>" * thinking_open + text), thinking_open, TOOLS)
        assert PARSER_FALLBACKS.total - before == count


TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<function=f>", "</function>", "<parameter=n>")
PIECES = st.lists(st.sampled_from([*TAGS, "</parameter>", "\n", "a", "<", "7", " "]), max_size=25)


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 200), max_size=6), thinking_open=st.booleans(), tools=st.booleans())
def test_how_the_text_is_cut_makes_no_difference(
    pieces: list[str], cuts: list[int], thinking_open: bool, tools: bool
) -> None:
    text = "".join(pieces)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[start:end] for start, end in itertools.pairwise(places)]
    given_tools = TOOLS if tools else None
    assert merged(_parse(parts, thinking_open, given_tools)) == merged(_parse([text], thinking_open, given_tools))


@given(pieces=PIECES, thinking_open=st.booleans())
def test_nothing_is_lost_but_tags_and_line_breaks(pieces: list[str], thinking_open: bool) -> None:
    text = "".join(pieces)
    events = _parse([text], thinking_open, TOOLS)
    texts = [event.text for event in events if isinstance(event, ReasoningDelta | ContentDelta)]
    if len(texts) == len(events):
        kept = "".join(texts)
        expected = text
        if thinking_open:
            expected = expected.replace("</think>", "", 1)
        elif text.lstrip().startswith("<think>"):
            expected = expected.replace("<think>", "", 1).replace("</think>", "", 1).lstrip()
        assert kept.replace("\n", "").strip() == expected.replace("\n", "").strip()
