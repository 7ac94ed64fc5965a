"""A suite is read completely or refused with the line at fault, and a choice from it is even."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qwonnx.export.errors import EvaluationError
from qwonnx.export.evaluation import suite
from qwonnx.export.evaluation.suite import ExpectedCall, Question, choose, read_suite

pytestmark = pytest.mark.fast

LINE: dict[str, Any] = {
    "task": "capitals",
    "messages": [{"role": "user", "content": "Which city?"}],
    "expected": {"role": "assistant", "content": " Paris\n"},
}


def write(folder: Path, *lines: object) -> Path:
    """A file whose lines are these, as JSON unless they are text already."""
    path = folder / "suite.jsonl"
    text = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return path


def questions(folder: Path, *lines: object) -> tuple[Question, ...]:
    return read_suite(write(folder, *lines)).questions


def test_a_line_is_read_with_its_defaults_and_blank_lines_count(tmp_path: Path) -> None:
    (question,) = questions(tmp_path, "", LINE)
    assert (question.line, question.task, question.language, question.thinking) == (2, "capitals", None, False)
    assert (question.content, question.calls, question.tools, question.pictures) == ("Paris", (), [], [])


def test_arguments_may_be_an_object_or_its_text(tmp_path: Path) -> None:
    calls = [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
        {"id": "1", "type": "function", "function": {"name": "g", "arguments": '{"y": [true]}'}},
    ]
    (question,) = questions(tmp_path, {**LINE, "expected": {"content": None, "tool_calls": calls}})
    assert question.calls == (ExpectedCall("f", {"x": 1}), ExpectedCall("g", {"y": [True]}))
    assert question.content == ""


def test_parts_that_are_no_text_are_pictures(tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    content = [{"type": "text", "text": "What is it?"}, picture]
    (question,) = questions(tmp_path, {**LINE, "messages": [{"role": "user", "content": content}]})
    assert question.pictures == [picture]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "not a JSON object"),
        ('{"task": "a", "task": "b"}', "appears twice"),
        ('{"task": NaN}', "NaN"),
        ("[" * 100_000, "nested too deeply"),
        ({**LINE, "task": 1}, "$.task"),
        ({**LINE, "task": ""}, "$.task"),
        ({**LINE, "task": "x" * 65}, "$.task"),
        ({**LINE, "task": "a\nb"}, "not a printable name"),
        ({**LINE, "language": ["Thai"]}, "$.language"),
        ({**LINE, "thinking": "yes"}, "$.thinking"),
        ({**LINE, "tools": {}}, "$.tools"),
        ({**LINE, "messages": []}, "$.messages"),
        ({**LINE, "messages": [{"role": "robot"}]}, "$.messages[0].role"),
        ({**LINE, "messages": [{"role": "user", "content": 5}]}, "$.messages[0].content"),
        ({**LINE, "expected": "Paris"}, "$.expected"),
        ({**LINE, "expected": {"role": "user", "content": "x"}}, "$.expected.role"),
        ({**LINE, "expected": {"tool_calls": [{"function": {"name": "f"}}]}}, "arguments"),
        ({**LINE, "expected": {"tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}}, "not a JSON object"),
        ({**LINE, "answer": "Paris"}, "unknown field `answer`"),
        ({"task": "capitals", "messages": LINE["messages"]}, "`expected`"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, reason: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        questions(tmp_path, LINE, line)
    assert str(caught.value).startswith(f"line 2 of {tmp_path / 'suite.jsonl'} is not a question (")
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


def test_files_that_hold_nothing_or_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for lines, reason in (((), "has no questions"), (("", " "), "has no questions")):
        with pytest.raises(EvaluationError, match=reason):
            questions(tmp_path, *lines)
    with pytest.raises(EvaluationError, match="cannot read"):
        read_suite(tmp_path)
    monkeypatch.setattr(suite, "MAX_LINES", 2)
    with pytest.raises(EvaluationError, match="exceeds 2 lines"):
        questions(tmp_path, LINE, LINE, LINE)
    monkeypatch.setattr(suite, "MAX_BYTES", len(json.dumps(LINE)) + 1)
    with pytest.raises(EvaluationError, match="split it"):
        questions(tmp_path, LINE, LINE)
    monkeypatch.setattr(suite, "MAX_LINE_BYTES", 20)
    with pytest.raises(EvaluationError, match="line 1 of"):
        questions(tmp_path, LINE)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n\xff\n")
    with pytest.raises(EvaluationError, match="line 2"):
        read_suite(path)


def test_a_limit_takes_as_many_of_each_task_spread_over_its_lines(tmp_path: Path) -> None:
    lines = [{**LINE, "task": task} for task, count in (("a", 40), ("b", 2), ("c", 30)) for _ in range(count)]
    every = questions(tmp_path, *lines)
    assert choose(every, (), None) == list(every)
    chosen = choose(every, (), 12)
    assert Counter(question.task for question in chosen) == {"a": 5, "b": 2, "c": 5}
    assert [question.line for question in chosen if question.task == "a"] == [1, 9, 17, 25, 33]
    assert len(choose(every, (), 2)) == 2
    assert Counter(question.task for question in choose(every, ("b", "c"), 6)) == {"b": 2, "c": 4}
    assert choose(every, ("b",), 100) == [question for question in every if question.task == "b"]
    with pytest.raises(EvaluationError, match="no task 'd': choose from a, b, c"):
        choose(every, ("d",), None)
