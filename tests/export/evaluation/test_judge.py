"""An answer is right if a client would see the expected message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwonnx.export.evaluation.judge import is_right
from qwonnx.export.evaluation.suite import Question, read_suite

pytestmark = pytest.mark.fast

PARAMETERS = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "wind": {"type": "number"},
    "all": {"type": "boolean"},
    "tags": {"type": "array"},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": PARAMETERS}}}
    for name in ("weather", "tides")
]


def question(tmp_path: Path, expected: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> Question:
    line = {"task": "t", "messages": [{"role": "user", "content": "?"}], "expected": expected, "tools": tools or []}
    path = tmp_path / "suite.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    return read_suite(path).questions[0]


def call(name: str, **arguments: str) -> str:
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


def expecting(tmp_path: Path, *calls: tuple[str, dict[str, Any]], content: str = "") -> Question:
    wanted = [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]
    return question(tmp_path, {"content": content, "tool_calls": wanted}, TOOLS)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("New  York", True),
        ("\n New  York \n", True),
        ("New York", False),
        ("new  york", False),
        ("New  York.", False),
        ("", False),
        ("<think>\nParis?\n</think>\n\nNew  York", True),
        ("<think>\nNew  York", False),
    ],
)
def test_content_is_equal_up_to_surrounding_white_space(tmp_path: Path, text: str, right: bool) -> None:
    assert is_right(question(tmp_path, {"content": " New  York\n"}), text, thinking_open=False) == right


def test_what_was_thought_does_not_count(tmp_path: Path) -> None:
    asked = question(tmp_path, {"content": "Yes", "reasoning_content": "It is."})
    assert is_right(asked, "Perhaps not.\n</think>\n\nYes", thinking_open=True)
    assert not is_right(asked, "Yes", thinking_open=True)
    assert is_right(asked, "Yes", thinking_open=False)


def test_calls_have_equal_names_and_arguments_in_whatever_order_these_are_written(tmp_path: Path) -> None:
    asked = expecting(tmp_path, ("weather", {"city": "Ulm", "days": 3, "wind": 2.5, "all": True, "tags": ["a", 1]}))
    values = {"tags": '["a", 1]', "all": "true", "wind": "2.5", "days": "3", "city": "Ulm"}
    assert is_right(asked, call("weather", **values), thinking_open=False)
    assert is_right(asked, call("weather", **{**values, "all": "True"}), thinking_open=False)
    for name, value in (("days", "4"), ("days", "three"), ("all", "1"), ("tags", '["a", true]'), ("city", "ulm")):
        assert not is_right(asked, call("weather", **{**values, name: value}), thinking_open=False)
    assert not is_right(asked, call("tides", **values), thinking_open=False)
    assert not is_right(asked, call("weather", **values, more="1"), thinking_open=False)
    assert not is_right(asked, call("weather", city="Ulm"), thinking_open=False)


def test_an_argument_of_another_type_is_wrong_and_whole_numbers_are_of_one_type(tmp_path: Path) -> None:
    as_text = expecting(tmp_path, ("weather", {"days": "3"}))
    assert not is_right(as_text, call("weather", days="3"), thinking_open=False)
    as_float = expecting(tmp_path, ("weather", {"wind": 3.0}))
    assert is_right(as_float, call("weather", wind="3"), thinking_open=False)
    truth = expecting(tmp_path, ("weather", {"days": True}))
    assert not is_right(truth, call("weather", days="1"), thinking_open=False)


def test_several_calls_come_in_their_order_and_none_is_left_out(tmp_path: Path) -> None:
    asked = expecting(tmp_path, ("weather", {"city": "Ulm"}), ("tides", {"city": "Kiel"}))
    first, second = call("weather", city="Ulm"), call("tides", city="Kiel")
    assert is_right(asked, f"{first}\n{second}", thinking_open=False)
    for text in (
        f"{second}\n{first}",
        first,
        f"{first}\n{first}",
        f"{first}\n{second}\n{second}",
        f"Well. {first}\n{second}",
    ):
        assert not is_right(asked, text, thinking_open=False)


def test_content_before_a_call_counts(tmp_path: Path) -> None:
    asked = expecting(tmp_path, ("weather", {"city": "Ulm"}), content="I look.")
    assert is_right(asked, f"I look.\n\n{call('weather', city='Ulm')}", thinking_open=False)
    assert not is_right(asked, call("weather", city="Ulm"), thinking_open=False)


def test_calls_that_are_malformed_or_not_expected_or_not_offered_are_wrong(tmp_path: Path) -> None:
    asked = expecting(tmp_path, ("weather", {"city": "Ulm"}))
    assert not is_right(
        asked, call("weather", city="Ulm").replace("</parameter>\n</function>", ""), thinking_open=False
    )
    plain = question(tmp_path, {"content": "Sunny"}, TOOLS)
    assert not is_right(plain, f"Sunny\n\n{call('weather', city='Ulm')}", thinking_open=False)
    written = call("weather", city="Ulm")
    assert is_right(question(tmp_path, {"content": written}), written, thinking_open=False)
