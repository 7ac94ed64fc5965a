"""Outputs of a request as parts: texts and calls, the end, token counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qwonnx.handlers.chat.parts import End, EndReason, Part, PartReader, Resumed, Usage
from qwonnx.runtime.engine.request import FinishReason, RequestOutput
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened, ContentDelta, ReasoningDelta
from qwonnx.runtime.text.output_parser import OutputParser
from tests.handlers.fakes import output

pytestmark = pytest.mark.fast

TOOLS = [{"type": "function", "function": {"name": "weigh", "parameters": {"properties": {"n": {"type": "integer"}}}}}]
CALL = "<tool_call>\n<function=weigh>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>"
WEIGH = (CallOpened("weigh"), ArgumentsDelta('{"n":3}'), CallClosed())


LETTER = [{"type": "function", "function": {"name": "write", "parameters": {"properties": {"t": {"type": "string"}}}}}]
OPENING = "<tool_call>\n<function=write>\n<parameter=t>\n"


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


def letters(*texts: str, reason: FinishReason = FinishReason.STOP) -> list[RequestOutput]:
    last = len(texts)
    return [
        output(text, number, reason=reason if number == last else None, generated=number)
        for number, text in enumerate(texts, 1)
    ]


def test_a_string_argument_comes_as_it_is_written() -> None:
    outputs = letters(OPENING, "Dear", ' "x"', "\n\n", "B", "\n</para", "meter>\n</function>", "\n</tool_call>")
    parts = read(PartReader(OutputParser(False, LETTER)), outputs)
    texts = [part.text for part in parts if isinstance(part, ArgumentsDelta)]
    assert texts == ['{"t": "Dear', ' \\"x\\"', "\\n", "\\nB", '"}']
    assert parts[0] == CallOpened("write")
    assert parts[-2:] == [CallClosed(), End(EndReason.CALLS, Usage(7, 2, 8, 0))]


def test_an_answer_that_is_cut_off_in_a_call_leaves_it_open() -> None:
    for reason in (FinishReason.LENGTH, FinishReason.DEADLINE):
        outputs = letters(OPENING, "Dear", " all\n</par", reason=reason)
        parts = read(PartReader(OutputParser(False, LETTER)), outputs)
        assert parts == [
            CallOpened("write"),
            ArgumentsDelta('{"t": "Dear'),
            ArgumentsDelta(" all"),
            End(EndReason.LENGTH, Usage(7, 2, 3, 0)),
        ]


def test_an_answer_that_ends_in_a_call_has_called() -> None:
    parts = read(PartReader(OutputParser(False, LETTER), one_call=True), letters(OPENING, "Dear", " all\n</par"))
    assert parts[-3:] == [ArgumentsDelta('\\n</par"}'), CallClosed(), End(EndReason.CALLS, Usage(7, 2, 3, 0))]


@pytest.mark.parametrize("given", range(1, 9))
def test_an_answer_goes_on_wherever_it_was(given: int) -> None:
    """What another request has given is not given again, and the first part says which call goes on."""
    whole = [CALL, OPENING, "Dear", " all", "\n</parameter>", "\n</function>\n", "</tool_call>", "", CALL]
    tools = [*TOOLS, *LETTER]
    first = PartReader(OutputParser(False, tools))
    before = read(first, [output(text, 1, generated=1) for text in whole[:given]])
    second = PartReader(OutputParser(False, tools))
    second.resume(whole[:given])
    resumed, *after = read(second, letters(*whole[given:]))
    num_calls = sum(isinstance(part, CallOpened) for part in before)
    is_open = num_calls > sum(isinstance(part, CallClosed) for part in before)
    assert resumed == Resumed(num_calls, "write" if is_open else None)
    assert (given in (3, 4, 5)) == is_open
    expected = read(PartReader(OutputParser(False, tools)), letters(*whole))
    assert [*before, *after][:-1] == expected[:-1]
    assert after[-1] == End(EndReason.CALLS, Usage(7, 2, 9 - 2 * given, 0))


def test_an_answer_that_goes_on_before_a_call_says_nothing_of_it() -> None:
    reader = PartReader(OutputParser(False, LETTER))
    reader.resume(["Text. ", OPENING])
    assert read(reader, letters("Dear"))[0] == CallOpened("write")


def test_without_a_parser_all_is_text() -> None:
    parts = read(PartReader(None), [output("<think>" + CALL, 1), output("", 2, reason=FinishReason.STOP, generated=2)])
    assert parts == [ContentDelta("<think>" + CALL), End(EndReason.STOP, Usage(7, 2, 2, 0))]
