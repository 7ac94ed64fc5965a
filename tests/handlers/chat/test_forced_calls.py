"""Clients force a call to get structured output, mostly of a tool that is not strict: arguments follow its schema."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from qwonnx.handlers.chat.answer_form import AnswerForm
from qwonnx.handlers.chat.tools import Tool
from tests.handlers.serving import MODEL, Served, chat

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
}
# The first cannot be written as a grammar, the second not be compiled.
NOT_FOLLOWED: list[dict[str, Any]] = [
    {"type": "object", "properties": {"days": {"type": "string", "pattern": "(?=a)"}}, "required": ["days"]},
    {"type": "object", "properties": {"days": {"type": "array", "uniqueItems": True}}, "required": ["days"]},
]
# A model that counts would write anything.
ANYTHING = {"model": MODEL, "temperature": 2}


def chat_call(served: Served, schema: dict[str, Any], named: bool, **fields: Any) -> Any:
    tools = [{"type": "function", "function": {"name": "pick", "parameters": schema}}]
    choice: Any = {"type": "function", "function": {"name": "pick"}} if named else "required"
    body = {**ANYTHING, "messages": chat(), "tools": tools, "tool_choice": choice, "max_tokens": 400, **fields}
    with served.http() as http:
        answer = http.post("/v1/chat/completions", json=body | {"parallel_tool_calls": False})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def responses_call(served: Served, named: bool) -> Any:
    tools = [{"type": "function", "name": "pick", "parameters": SCHEMA, "strict": False}]
    choice: Any = {"type": "function", "name": "pick"} if named else "required"
    body = {**ANYTHING, "input": "Hi", "tools": tools, "tool_choice": choice, "max_output_tokens": 400}
    with served.http() as http:
        answer = http.post("/v1/responses", json=body | {"parallel_tool_calls": False})
    return json.loads(answer.json()["output"][-1]["arguments"])


def messages_call(served: Served, named: bool) -> Any:
    choice = {"type": "tool", "name": "pick"} if named else {"type": "any", "disable_parallel_tool_use": True}
    tools = [{"name": "pick", "input_schema": SCHEMA}]
    body = {**ANYTHING, "messages": chat(), "tools": tools, "tool_choice": choice, "max_tokens": 400}
    with served.http() as http:
        answer = http.post("/v1/messages", json=body)
    return answer.json()["content"][-1]["input"]


@pytest.mark.parametrize("named", [False, True])
def test_a_forced_call_of_any_tool_follows_its_schema(served: Served, named: bool) -> None:
    called = [
        *(json.loads(only(chat_call(served, SCHEMA, named, seed=seed))) for seed in range(3)),
        responses_call(served, named),
        messages_call(served, named),
    ]
    for arguments in called:
        assert set(arguments) == {"city", "days"}
        assert arguments["city"] in ("Oslo", "Rome")
        assert 1 <= arguments["days"] <= 7


def only(choice: Any) -> str:
    (call,) = choice["message"]["tool_calls"]
    arguments: str = call["function"]["arguments"]
    return arguments


@pytest.mark.parametrize("schema", NOT_FOLLOWED)
@pytest.mark.parametrize("named", [False, True])
def test_a_schema_that_cannot_be_followed_leaves_the_values_free(
    served: Served, schema: dict[str, Any], named: bool
) -> None:
    choice = chat_call(served, schema, named, max_tokens=60, temperature=0)
    assert choice["finish_reason"] in ("tool_calls", "length")
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "pick"


def test_other_tools_are_followed_beside_one_that_cannot_be() -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in (("odd", NOT_FOLLOWED[0]), ("pick", SCHEMA))
    ]
    guide = AnswerForm(msgspec.convert(tools, list[Tool]), required=True).guide()
    assert guide is not None
    assert '"Oslo"' in guide.source
    assert guide.otherwise is not None
    assert '"Oslo"' not in guide.otherwise.source
