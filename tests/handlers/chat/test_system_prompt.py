"""System prompts from files: accepted in the form of chat templates, or refused with the field at fault."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwonnx.handlers.chat.system_prompt import parse_prompt
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.text.chat_prompt import SystemPrompt

pytestmark = pytest.mark.fast

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}


def parsed(**fields: Any) -> SystemPrompt:
    return parse_prompt(json.dumps(fields))


def test_messages_and_tools_are_taken_and_both_may_be_missing() -> None:
    message = {"role": "system", "content": "Be brief."}
    assert parsed(messages=[message], tools=[TOOL]) == SystemPrompt([message], [TOOL])
    assert parsed(tools=[TOOL]) == SystemPrompt([], [TOOL])
    assert parsed(messages=[message]) == parsed(messages=[message], tools=None) == SystemPrompt([message], [])
    assert parsed() == SystemPrompt([], [])
    assert parse_prompt(b'{"messages": []}') == SystemPrompt([], [])


def test_messages_get_the_form_of_templates() -> None:
    parts = [{"type": "text", "text": "One, "}, {"type": "text", "text": "two."}]
    messages = [{"role": "developer", "content": parts, "name": "ada"}, {"role": "system", "content": ""}]
    expected = [{"role": "system", "content": "One, two.", "name": "ada"}, {"role": "system", "content": ""}]
    assert parsed(messages=messages).messages == expected


def test_that_a_tool_is_strict_is_not_for_the_model_to_know() -> None:
    strict = {"type": "function", "function": {**TOOL["function"], "strict": True}}
    assert parsed(tools=[strict]).tools == [TOOL]


@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
def test_nobody_but_the_system_speaks(role: str) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": role, "content": "b"}]
    with pytest.raises(InvalidRequestError) as refusal:
        parsed(messages=messages)
    assert str(refusal.value) == f"messages[1] has the role {role}: give only system messages"
    assert refusal.value.param == "messages[1]"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "system"}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": "a", "mood": 1}]}, "messages[0].mood"),
        ({"messages": [{"role": "system", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": [], "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": ["a"]}, "messages[0]"),
        ({"tools": "all"}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "retrieval", "function": {"name": "a"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "strict": 1}}]}, "tools[0].function.strict"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"messages": [], "temperature": 0}, "temperature"),
    ],
    ids=lambda value: json.dumps(value)[:70],
)
def test_every_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        parsed(**fields)
    assert refusal.value.param == param
    assert param in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_two_tools_of_one_name_are_said_by_it() -> None:
    with pytest.raises(InvalidRequestError, match="two tools are named weigh: rename one") as refusal:
        parsed(tools=[TOOL, TOOL])
    assert refusal.value.param == "tools[1].function.name"


@pytest.mark.parametrize("document", ["", "{", "[" * 100_000, '{"tools": ' + "[" * 100_000, b"\xff", '{"tools": NaN}'])
def test_what_is_no_json_is_said_to_be_none(document: str | bytes) -> None:
    with pytest.raises(InvalidRequestError, match="the prompt is not valid JSON"):
        parse_prompt(document)


@pytest.mark.parametrize("document", ["[]", "null", "5", '"text"', '{"messages": null}', '{"messages": {}}'])
def test_what_is_no_object_of_messages_is_said_to_be_none(document: str) -> None:
    with pytest.raises(InvalidRequestError, match="not an object with a list of messages"):
        parse_prompt(document)
