"""Tools of requests: what the model is told of them, and the names by which its calls are found again."""

from __future__ import annotations

from typing import Any

import pytest

from qwonnx.handlers.responses.tools import HOSTED, Callee, flat_name
from tests.handlers.responses.bodies import AGENTS, PATCH, WEATHER, refusal, understood

pytestmark = pytest.mark.fast


def test_functions_are_told_as_they_are_but_for_strict() -> None:
    asked = understood(tools=[{**WEATHER, "strict": True, "defer_loading": True}])
    assert asked.neutral.tools == [
        {"type": "function", "function": {key: WEATHER[key] for key in ("name", "description", "parameters")}}
    ]
    assert asked.tools.callee("weather") == Callee("weather")
    assert asked.tools.callee("made_up") == Callee("made_up")


def test_a_custom_tool_is_told_as_a_function_with_one_string() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /a+/"}
    asked = understood(tools=[PATCH, {**PATCH, "name": "bare", "description": None, "format": grammar}])
    first, second = (tool["function"] for tool in asked.neutral.tools)
    assert first == {
        "name": "patch",
        "description": "Changes files.",
        "parameters": {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]},
    }
    assert second["description"] == "The input must follow this lark grammar:\nstart: /a+/"
    assert asked.tools.callee("patch") == Callee("patch", is_custom=True)


def test_a_namespace_is_told_flat_and_named_back() -> None:
    asked = understood(tools=[WEATHER, AGENTS])
    assert [tool["function"]["name"] for tool in asked.neutral.tools] == ["weather", "agents__close", "agents__patch"]
    assert asked.tools.callee("agents__close") == Callee("close", "agents")
    assert asked.tools.callee("agents__patch") == Callee("patch", "agents", is_custom=True)
    assert asked.tools.places == ["tools[0]", "tools[1].tools[0]", "tools[1].tools[1]"]


@pytest.mark.parametrize("kind", sorted(HOSTED))
def test_hosted_tools_are_ignored_and_named_or_refused(kind: str) -> None:
    hosted = {"type": kind, "external_web_access": False, "anything": {"else": [1]}}
    asked = understood(tools=[hosted, WEATHER, hosted])
    assert [tool["function"]["name"] for tool in asked.neutral.tools] == ["weather"]
    assert asked.tools.ignored == [kind]
    assert len(asked.tools.given) == 1
    refused = refusal(tools=[WEATHER, hosted], strict_tools=True)
    assert (refused.parameter, refused.code) == ("tools[1].type", "unsupported_tool")
    assert kind in refused.message
    assert refusal(tools=[hosted], tool_choice={"type": kind}).parameter == "tool_choice.type"


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "moon"}], "tools[0].type"),
        ([{"name": "a"}], "tools[0].type"),
        ([1], "tools[0]"),
        ([WEATHER, {**WEATHER, "name": "a b"}], "tools[1].name"),
        ([WEATHER, {**WEATHER, "wish": 1}], "tools[1].wish"),
        ([WEATHER, WEATHER], "tools[1].name"),
        ([{**AGENTS, "tools": [PATCH, PATCH]}], "tools[0].tools[1].name"),
        ([{**AGENTS, "tools": [{"type": "web_search"}]}], "tools[0].tools[0].type"),
        ([{**AGENTS, "name": "n" * 64, "tools": [{**PATCH, "name": "p" * 63}]}], "tools[0].tools[0].name"),
        ([{**WEATHER, "name": f"w{number}"} for number in range(129)], "tools"),
    ],
)
def test_a_tool_that_cannot_be_read_is_refused_by_its_place(tools: list[Any], param: str) -> None:
    assert refusal(tools=tools).parameter == param


def chosen(choice: Any) -> tuple[list[str], bool, str | None]:
    tools = understood(tools=[WEATHER, AGENTS, PATCH], tool_choice=choice).tools
    return [tool.function.name for tool in tools.tools], tools.required, tools.named


ALL = ["weather", "agents__close", "agents__patch", "patch"]


def test_a_choice_names_tools_by_any_of_their_names() -> None:
    assert chosen("auto") == (ALL, False, None)
    assert chosen("none") == ([], False, None)
    assert chosen("required") == (ALL, True, None)
    assert chosen({"type": "function", "name": "weather"}) == (ALL, True, "weather")
    assert chosen({"type": "custom", "name": "patch"}) == (ALL, True, "patch")
    for named in ({"name": "close", "namespace": "agents"}, {"name": "agents__close"}, {"name": "close"}):
        assert chosen({"type": "function", **named}) == (ALL, True, "agents__close")
    allowed = {"type": "allowed_tools", "mode": "required"}
    entries = [{"type": "function", "name": "close"}, {"type": "web_search"}]
    assert chosen({**allowed, "tools": entries}) == (["agents__close"], True, None)
    assert chosen({**allowed, "mode": "auto", "tools": []}) == ([], False, None)


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("maybe", "tool_choice"),
        ({"type": "moon"}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "function", "name": "absent"}, "tool_choice.name"),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "a"}]},
            "tool_choice.tools[0].name",
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"name": "weather"}]}, "tool_choice.tools[0].type"),
        ({"type": "allowed_tools", "mode": "required", "tools": []}, "tool_choice"),
        (1, "tool_choice"),
    ],
)
def test_a_choice_that_cannot_be_followed_is_refused(choice: Any, param: str) -> None:
    assert refusal(tools=[WEATHER], tool_choice=choice).parameter == param


def test_flat_names_join_the_namespace_and_the_name() -> None:
    assert (flat_name("b", None), flat_name("b", "a")) == ("b", "a__b")
