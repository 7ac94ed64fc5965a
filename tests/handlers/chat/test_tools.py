"""Tools in the form of documents and of chat templates."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from qwonnx.handlers.chat.tools import MAX_TOOLS, Tool, Tools, check_names, template_tools
from qwonnx.handlers.errors import ServiceError

pytestmark = pytest.mark.fast


def tools(*functions: dict[str, Any]) -> list[Tool]:
    return msgspec.convert([{"type": "function", "function": function} for function in functions], Tools)


def test_the_model_is_told_what_was_sent_and_not_that_a_tool_is_strict() -> None:
    parameters = {"type": "object", "properties": {"n": {"default": 1.5}}}
    sent = {"name": "weigh", "description": "Weighs.", "parameters": parameters}
    assert template_tools(tools({**sent, "strict": True})) == [{"type": "function", "function": sent}]
    assert template_tools(tools({"name": "a"})) == [{"type": "function", "function": {"name": "a"}}]


def test_telling_the_model_leaves_the_tools_as_they_are() -> None:
    given = tools({"name": "a", "strict": True})
    template_tools(given)
    assert given[0].function.strict is True


def test_a_name_is_there_once() -> None:
    check_names([])
    check_names(tools({"name": "a"}, {"name": "b"}))
    with pytest.raises(ServiceError) as refusal:
        check_names(tools({"name": "a"}, {"name": "b"}, {"name": "a"}))
    assert (refusal.value.status, refusal.value.parameter) == (400, "tools[2].function.name")
    assert refusal.value.message == "two tools are named a: rename one"


@pytest.mark.parametrize(
    "function",
    [{}, {"name": ""}, {"name": "a b"}, {"name": "é"}, {"name": "a" * 129}, {"name": "a<b"}, {"name": "a", "z": {}}],
)
def test_what_is_no_function_is_refused(function: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match="function"):
        tools(function)


@pytest.mark.parametrize("name", ["mcp__files__read", "files.read", "files/read", "files:read", "a" * 128])
def test_names_of_mcp_servers_are_taken(name: str) -> None:
    assert tools({"name": name})[0].function.name == name


def test_there_may_be_so_many_and_no_more() -> None:
    assert len(tools(*({"name": f"f{number}"} for number in range(MAX_TOOLS)))) == MAX_TOOLS
    with pytest.raises(msgspec.ValidationError):
        tools(*({"name": f"f{number}"} for number in range(MAX_TOOLS + 1)))
