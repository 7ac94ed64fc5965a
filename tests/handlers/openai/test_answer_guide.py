"""The form of an answer from response_format, structured_outputs and tools: one, or a refusal that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.openai import answer_guide, chat_request
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.guide import Guide, GuideKind

pytestmark = pytest.mark.fast

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
SCHEMA_PARAM = "response_format.json_schema.schema"


def tool(name: str = "weigh", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def guide(**fields: Any) -> Guide | None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return answer_guide.of_request(chat_request.parse(json.dumps(body).encode()))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"tools": [tool()]},
        {"tools": [tool(strict=False)], "tool_choice": "auto"},
        {"tools": [tool(strict=True)], "tool_choice": "none"},
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_an_answer_may_be_anything_if_nothing_is_asked_for(fields: dict[str, Any]) -> None:
    assert guide(**fields) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": FORMAT}, Guide.json_schema(SCHEMA, SCHEMA_PARAM)),
        ({"response_format": {"type": "json_object"}}, Guide.json_object(SCHEMA_PARAM)),
        ({"structured_outputs": {"json": SCHEMA}}, Guide.json_schema(SCHEMA, "structured_outputs.json")),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Guide.json_schema(SCHEMA, "structured_outputs.json")),
        ({"structured_outputs": {"json": "true"}}, Guide.json_schema(True, "structured_outputs.json")),
        ({"structured_outputs": {"regex": "a+"}}, Guide.regex("a+", "structured_outputs.regex")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Guide.choice(["a", "b"], "structured_outputs.choice")),
        ({"structured_outputs": {"grammar": "start: 'a'"}}, Guide.lark("start: 'a'", "structured_outputs.grammar")),
        ({"structured_outputs": {"json_object": True}}, Guide.json_object("structured_outputs.json_object")),
        ({"structured_outputs": {"regex": "a", "json_object": False}}, Guide.regex("a", "structured_outputs.regex")),
        (
            {"response_format": FORMAT, "tools": [tool()], "tool_choice": "none"},
            Guide.json_schema(SCHEMA, SCHEMA_PARAM),
        ),
    ],
    ids=lambda value: json.dumps(value, default=str)[:60],
)
def test_a_form_is_followed_and_remembers_the_field_that_asked_for_it(fields: dict[str, Any], expected: Guide) -> None:
    assert guide(**fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [tool(strict=True)]},
        {"tools": [tool()], "tool_choice": "required"},
        {"tools": [tool()], "tool_choice": named("weigh")},
        {"tools": [tool()], "response_format": FORMAT},
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_calls_that_are_bound_in_any_way_are_a_grammar(fields: dict[str, Any]) -> None:
    found = guide(**fields)
    assert found is not None
    assert found.kind is GuideKind.LARK
    assert "weigh" in found.source


def test_a_named_tool_is_the_only_one_and_is_called_once() -> None:
    tools = [tool("weigh"), tool("wind")]
    one = guide(tools=tools, tool_choice=named("wind"))
    assert one is not None
    assert "weigh" not in one.source
    assert one == guide(tools=tools, tool_choice=named("wind"), parallel_tool_calls=True)


def test_one_call_at_a_time_is_another_grammar_than_several() -> None:
    several = guide(tools=[tool()], tool_choice="required")
    assert several == guide(tools=[tool()], tool_choice="required", parallel_tool_calls=True)
    assert several != guide(tools=[tool()], tool_choice="required", parallel_tool_calls=False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": FORMAT}, "response_format"),
        ({"structured_outputs": {"regex": "a"}, "tools": [tool()]}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_two_forms_at_once_or_no_form_at_all_are_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ServiceError) as refusal:
        guide(**fields)
    assert (refusal.value.status, refusal.value.parameter) == (400, param)


def test_a_schema_that_nothing_is_valid_by_is_refused() -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        guide(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": False}})
    assert refusal.value.param == SCHEMA_PARAM
