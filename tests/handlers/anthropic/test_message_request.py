"""Message requests: what is taken and what it becomes, and what is refused by which name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwonnx.handlers.anthropic import message_request
from qwonnx.handlers.anthropic.protocol import CountTokensRequest, MessageRequest
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.errors import ServiceError

pytestmark = pytest.mark.fast

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
TOOL: dict[str, Any] = {"name": "weigh", "input_schema": {"type": "object"}}


def parsed(**fields: Any) -> MessageRequest:
    body = {"model": "m", "max_tokens": 9, "messages": [USER], **fields}
    return message_request.parse(json.dumps(body).encode(), MessageRequest)


def neutral(**fields: Any) -> ChatRequest:
    return message_request.neutral(parsed(**fields))


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **more}


def test_blocks_become_the_templates_messages() -> None:
    messages = [
        {"role": "user", "content": [text("One.", cache_control={"type": "ephemeral"}), text("Two.")]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "theirs"},
                {"type": "redacted_thinking", "data": "x"},
                text("I look."),
                {"type": "tool_use", "id": "t1", "name": "weigh", "input": {"n": 1}},
                {"type": "tool_use", "id": "t2", "name": "weigh", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                text("And now?"),
                {"type": "tool_result", "tool_use_id": "t1", "content": [text("a"), text("b")]},
                {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
            ],
        },
        {"role": "system", "content": "Be quick."},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t3"}]},
    ]
    system = [text("x-anthropic-billing-header: cc_version=2.1"), text("Be brief."), text("Be kind.")]
    call = {"type": "function", "function": {"name": "weigh", "arguments": {"n": 1}}}
    assert neutral(messages=messages, system=system).messages == [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "One.\n\nTwo."},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "t1", **call},
                {"id": "t2", "type": "function", "function": {"name": "weigh", "arguments": {}}},
            ],
        },
        {"role": "tool", "content": "a\n\nb", "tool_call_id": "t1"},
        {"role": "tool", "content": "Error: no", "tool_call_id": "t2"},
        {"role": "user", "content": "And now?"},
        {"role": "system", "content": "Be quick."},
        {"role": "tool", "content": "", "tool_call_id": "t3"},
    ]


@pytest.mark.parametrize(
    ("fields", "thinking", "effort", "budget"),
    [
        ({}, False, None, None),
        ({"thinking": {"type": "disabled"}}, False, None, None),
        ({"thinking": {"type": "adaptive"}}, None, None, None),
        ({"thinking": {"type": "between_tools"}}, True, None, None),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True, None, 1024),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, None, "high", None),
        ({"output_config": {"effort": "high"}}, False, None, None),
    ],
)
def test_thinking_is_off_unless_it_is_asked_for(
    fields: dict[str, Any], thinking: bool | None, effort: str | None, budget: int | None
) -> None:
    asked = neutral(**fields)
    assert (asked.thinking, asked.effort, asked.thinking_budget) == (thinking, effort, budget)


def test_sampling_has_the_engines_names() -> None:
    asked = neutral(temperature=0.5, top_p=0.9, top_k=-1, stop_sequences=["a"])
    assert asked.sampling == {"max_tokens": 9, "stop": ("a",), "temperature": 0.5, "top_p": 0.9, "top_k": None}


@pytest.mark.parametrize(
    ("last", "begins"),
    [
        (USER, False),
        ({"role": "assistant", "content": "Well,"}, True),
        ({"role": "assistant", "content": [text("Well,")]}, True),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "a", "input": {}}]}, False),
    ],
)
def test_an_assistants_last_message_is_the_beginning_of_the_answer(last: dict[str, Any], begins: bool) -> None:
    assert neutral(messages=[USER, last]).continue_final is begins


def test_tools_and_their_choice() -> None:
    told = [{"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}]
    assert neutral(tools=[TOOL]).tools == told
    assert neutral(tools=[TOOL], tool_choice={"type": "none"}).tools == []
    for choice in ("auto", "any"):
        asked = neutral(tools=[TOOL], tool_choice={"type": choice, "disable_parallel_tool_use": True})
        assert asked.one_call
        assert asked.guide is not None
        assert (asked.guide() is None) is (choice == "auto")


@pytest.mark.parametrize(
    ("fields", "parameter"),
    [
        ({"wish": 1}, "wish"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": ""}]}]}, None),
        ({"thread": {"type": "create"}}, "thread"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0].type"),
        ({"stop_sequences": ["x" * 1025]}, "stop_sequences"),
        ({"messages": [USER] * 2049}, "messages"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_is_not_served_is_refused_by_its_name(fields: dict[str, Any], parameter: str | None) -> None:
    with pytest.raises(ServiceError) as refusal:
        parsed(**fields)
    assert refusal.value.status == 400
    assert parameter is None or refusal.value.parameter == parameter


def test_a_count_needs_no_limit() -> None:
    body = json.dumps({"model": "m", "messages": [USER], "tools": [TOOL]}).encode()
    assert message_request.neutral(message_request.parse(body, CountTokensRequest)).sampling == {}
    with pytest.raises(ServiceError, match="max_tokens"):
        message_request.parse(body, MessageRequest)
