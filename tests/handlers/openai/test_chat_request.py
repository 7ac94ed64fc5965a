"""Bodies as checked requests, without a server: accepted fields, refusals, and the template's messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.openai import chat_request
from qwonnx.handlers.openai.chat_protocol import ChatCompletionRequest

pytestmark = pytest.mark.fast

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weigh", "strict": True}}


def parsed(**fields: Any) -> ChatCompletionRequest:
    return chat_request.parse(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def refusal(**fields: Any) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        parsed(**fields)
    assert (raised.value.kind, raised.value.status) == (ErrorKind.INVALID, 400)
    return raised.value


@pytest.mark.parametrize(
    ("fields", "message", "param", "code"),
    [
        ({"wish": 1}, "unknown parameter wish: remove it", "wish", "unknown_parameter"),
        ({"messages": []}, "messages is empty: send at least one message", "messages", None),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs: set logprobs to true", "top_logprobs", None),
        ({"n": 2, "continuation": "t"}, "a continuation goes on with one answer: leave out n", "n", None),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            "reasoning_effort 'low' contradicts chat_template_kwargs.enable_thinking: send one of them",
            "reasoning_effort",
            None,
        ),
        (
            {"max_tokens": 1, "max_completion_tokens": 2},
            "max_tokens and max_completion_tokens differ: send one of them",
            "max_tokens",
            None,
        ),
        ({"stream_options": {}}, "stream_options needs stream: set stream to true", "stream_options", None),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation is not supported: leave it out",
            "stream_options.include_obfuscation",
            "unsupported_parameter",
        ),
        ({"tools": [TOOL, TOOL]}, "two tools are named weigh: rename one", "tools[1].function.name", None),
        (
            {"tool_choice": "required"},
            "tool_choice is 'required' and there are no tools: send tools",
            "tool_choice",
            None,
        ),
        (
            {"tool_choice": "required", "tools": []},
            "tool_choice is 'required' and there are no tools: send tools",
            "tool_choice",
            None,
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice names x, which is not one of the tools: name one of them",
            "tool_choice.function.name",
            None,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}]},
            "messages[0].content[0] is of type refusal: send text",
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "assistant"}]},
            "messages[0].content is missing: send the answer or its tool_calls",
            "messages[0].content",
            None,
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "x", "annotations": [1]}]},
            "messages[1].annotations is not supported: remove it",
            "messages[1].annotations",
            "unsupported_parameter",
        ),
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_a_refusal_says_what_and_where(fields: dict[str, Any], message: str, param: str, code: str | None) -> None:
    error = refusal(**fields)
    assert (error.message, error.parameter, error.code) == (message, param, code)


def test_what_is_no_json_is_said_to_be_none() -> None:
    with pytest.raises(ServiceError) as raised:
        chat_request.parse(b'{"model": ')
    assert (raised.value.code, raised.value.parameter) == ("invalid_json", None)
    assert raised.value.message.startswith("the body is not valid JSON: ")


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"n": 8, "logprobs": True, "top_logprobs": 20, "timings": True},
        {"store": False, "logprobs": False, "top_logprobs": 0, "modalities": ["text"], "functions": []},
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"messages": [{"role": "assistant", "reasoning_content": "Hm."}]},
        {"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
        {"messages": [{"role": "assistant", "content": "x", "refusal": None, "annotations": [], "audio": None}]},
        {"user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "k"},
        {"moderation": None, "prompt_cache_options": {"mode": "implicit"}, "verbosity": "low", "top_k": -1},
        {"cache_control": {"type": "ephemeral"}, "chat_template_kwargs": {"preserve_thinking": True}},
        {"messages": [{"role": "user", "content": "x", "extra": {"function_id": "1"}}]},
        {"messages": [{"role": "assistant", "content": "x", "reasoning": "Hm.", "reasoning_content": "Hm."}]},
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1", "id": "1", "name": "weigh"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "e"}}]}]},
        {"add_generation_prompt": True},
    ],
    ids=lambda value: json.dumps(value)[:50],
)
def test_what_asks_for_nothing_special_is_taken(fields: dict[str, Any]) -> None:
    parsed(**fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"reasoning_effort": "none"}, False),
        *(({"reasoning_effort": effort}, True) for effort in ("minimal", "low", "medium", "high", "xhigh")),
        ({"chat_template_kwargs": {}}, None),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "none"}, False),
    ],
)
def test_thinking_has_two_switches(fields: dict[str, Any], expected: bool | None) -> None:
    assert chat_request.thinking(parsed(**fields)) is expected


def test_switches_that_contradict_each_other_are_refused() -> None:
    error = refusal(chat_template_kwargs={"enable_thinking": True}, reasoning_effort="none")
    assert error.parameter == "reasoning_effort"


def test_a_model_that_must_not_call_is_told_of_no_tools_and_never_that_one_is_strict() -> None:
    plain = {"type": "function", "function": {"name": "weigh"}}
    assert chat_request.offered_tools(parsed(tools=[TOOL])) == [plain]
    assert chat_request.offered_tools(parsed(tools=[TOOL], tool_choice="none")) == []
    assert chat_request.offered_tools(parsed()) == []


def test_messages_get_the_form_of_templates() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weigh", "arguments": '{"n": 1}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "Hi", "name": "Ada"},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [{**call, "index": 0}]},
        {"role": "tool", "content": "5", "tool_call_id": "call_1", "name": "weigh"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
    ]
    assert chat_request.template_messages(parsed(messages=messages).messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi", "name": "Ada"},
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "content": "5", "name": "weigh", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "ab"},
    ]
