"""Outputs of a request as parts: texts and calls, the end, token counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qwonnx.handlers.chat.parts import End, EndReason, Part, PartReader, Usage
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened, ContentDelta, ReasoningDelta
from qwonnx.runtime.text.output_parser import OutputParser
from tests.handlers.fakes import output

pytestmark = pytest.mark.fast

TOOLS = [{"type": "function", "function": {"name": "weigh", "parameters": {"properties": {"n": {"type": "integer"}}}}}]
CALL = "<tool_call>\n<function=weigh>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>"
WEIGH = (CallOpened("weigh"), ArgumentsDelta('{"n":3}'), CallClosed())


def read(reader: PartReader, outputs: Sequence[RequestOutput]) -> list[Part]:
    return [part for one in outputs for part in reader.read(one)]


def chat_reader(*, thinking_open: bool = False, one_call: bool = False) -> PartReader:
    return PartReader(OutputParser(thinking_open, TOOLS), one_call=one_call)


def normal(parts: Sequence[Part]) -> list[Part]:
    """Calls with their arguments' white space taken out."""
    return [ArgumentsDelta(part.text.replace(" ", "")) if isinstance(part, ArgumentsDelta) else part for part in parts]


def test_text_comes_as_it_comes_and_an_end_follows_it() -> None:
    parts = read(chat_reader(), [output("a", 1), output(""), output("b", 2, 3, reason=FinishReason.STOP, generated=3)])
    assert parts == [ContentDelta("a"), ContentDelta("b"), End(EndReason.STOP, Usage(7, 2, 3, 0))]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (FinishReason.STOP, EndReason.STOP),
        (FinishReason.LENGTH, EndReason.LENGTH),
        (FinishReason.DEADLINE, EndReason.LENGTH),
    ],
)
def test_an_answer_that_was_cut_short_says_so(reason: FinishReason, expected: EndReason) -> None:
    assert read(chat_reader(), [output("a", 1, reason=reason)])[-1] == End(expected, Usage(7, 2, 1, 0))


def test_what_the_parser_held_back_comes_before_the_end() -> None:
    parts = read(chat_reader(), [output("a <tool", 1), output("_ca", 2, reason=FinishReason.LENGTH, generated=2)])
    assert "".join(part.text for part in parts if isinstance(part, ContentDelta)) == "a <tool_ca"
    assert isinstance(parts[-1], End)


def test_reasoning_is_told_from_text_and_its_tokens_and_tags_are_counted() -> None:
    outputs = [
        output("He asks.", 1, 2, 3),
        output("</think>", 4),
        output("\n\nYes.", 5, 6, reason=FinishReason.STOP, generated=6),
    ]
    parts = read(chat_reader(thinking_open=True), outputs)
    assert parts == [ReasoningDelta("He asks."), ContentDelta("Yes."), End(EndReason.STOP, Usage(7, 2, 6, 4))]


def test_an_answer_that_called_ends_for_that_reason_unless_it_was_cut_short() -> None:
    both = read(chat_reader(), [output(CALL + CALL, 1, reason=FinishReason.STOP)])
    assert normal(both) == [*WEIGH, *WEIGH, End(EndReason.CALLS, Usage(7, 2, 1, 0))]
    cut = read(chat_reader(), [output(CALL, 1), output("and", 2, reason=FinishReason.LENGTH, generated=2)])
    assert cut[-1] == End(EndReason.LENGTH, Usage(7, 2, 2, 0))


def test_one_call_ends_the_answer_whatever_follows() -> None:
    reader = chat_reader(one_call=True)
    parts = read(reader, [output("I look." + CALL + CALL + "more", 1, 2)])
    assert normal(parts) == [ContentDelta("I look."), *WEIGH, End(EndReason.CALLS, Usage(7, 2, 2, 0))]


def test_one_call_that_never_comes_changes_nothing() -> None:
    parts = read(chat_reader(one_call=True), [output("No.", 1, reason=FinishReason.STOP)])
    assert parts == [ContentDelta("No."), End(EndReason.STOP, Usage(7, 2, 1, 0))]


def test_without_a_parser_all_is_text() -> None:
    parts = read(PartReader(None), [output("<think>" + CALL, 1), output("", 2, reason=FinishReason.STOP, generated=2)])
    assert parts == [ContentDelta("<think>" + CALL), End(EndReason.STOP, Usage(7, 2, 2, 0))]
