"""Bodies as neutral requests, without a server: accepted fields, refusals, sampling, and the form of the answer."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from qwonnx.handlers import errors
from qwonnx.handlers.effort import Effort
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.responses import request
from qwonnx.runtime.sampling.guide import GuideKind
from tests.handlers.responses.bodies import AGENTS, WEATHER, refusal, understood

pytestmark = pytest.mark.fast

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"n": {"type": "integer"}}}
STATELESS = "this server stores nothing: send the earlier output items in input"


@pytest.mark.parametrize(
    ("fields", "message", "param", "code"),
    [
        ({"wish": 1}, "unknown parameter wish: remove it", "wish", "unknown_parameter"),
        ({"input": None}, "input is invalid: expected 'str | array', got 'null'", "input", "invalid_value"),
        ({"input": []}, "input is empty: send a text, or at least one item", "input", None),
        (
            {"previous_response_id": "resp_1"},
            f"previous_response_id is not supported: {STATELESS}",
            "previous_response_id",
            "unsupported_parameter",
        ),
        (
            {"conversation": {"id": "conv_1"}},
            f"conversation is not supported: {STATELESS}",
            "conversation",
            "unsupported_parameter",
        ),
        (
            {"background": True},
            "background is not supported: this server stores nothing: use stream",
            "background",
            "unsupported_parameter",
        ),
        (
            {"prompt": {"id": "pmpt_1"}},
            "prompt is not supported: this server stores nothing: send the text in instructions or input",
            "prompt",
            "unsupported_parameter",
        ),
        (
            {"truncation": "auto"},
            "truncation is not supported: items are never left out of the input: use 'disabled'",
            "truncation",
            "unsupported_parameter",
        ),
        ({"stream_options": {}}, "stream_options needs stream: set stream to true", "stream_options", None),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation is not supported: leave it out",
            "stream_options.include_obfuscation",
            "unsupported_parameter",
        ),
        (
            {"tool_choice": "required"},
            "tool_choice requires a call and there are no tools: send tools",
            "tool_choice",
            None,
        ),
    ],
)
def test_a_field_that_cannot_be_obeyed_is_refused_by_name(
    fields: dict[str, Any], message: str, param: str, code: str | None
) -> None:
    refused = refusal(**fields)
    assert (refused.message, refused.parameter, refused.code) == (message, param, code)


def test_an_unknown_include_is_refused_with_those_that_there_are() -> None:
    refused = refusal(include=["reasoning.encrypted_content", "the.moon"])
    assert refused.parameter == "include[1]"
    assert "'the.moon'" in refused.message
    assert "web_search_call.results" in refused.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":"m","input":"\xff"}', b"[" * 100_000])
def test_a_body_that_is_not_a_request_is_refused(body: bytes) -> None:
    with pytest.raises(ServiceError) as raised:
        request.understood(body)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    "part",
    [
        b'"input":[{"role":"user","content":"Hi","wish":' + b"[" * 5000 + b"]" * 5000 + b"}]",
        b'"input":[{"role":"user","content":"\xff"}]',
        b'"input":[{"role":"user","content":"Hi","id":"\xff"}]',
        b'"input":[{"type":"function_call_output","output":"","caller":' + b"[" * 5000 + b"]" * 5000 + b"}]",
        b'"input":"Hi","tools":[{"type":"function","name":"f","description":"\xff"}]',
        b'"input":"Hi","tools":[{"type":"function","name":"f","parameters":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}]",
        b'"input":"Hi","tools":[{"type":"function","name":"f"}],"tool_choice":{"type":[1]}',
        b'"input":"Hi","tool_choice":{"type":"allowed_tools","mode":"auto","tools":[{"type":[1]}]}',
    ],
)
def test_a_part_that_is_not_what_it_seems_is_refused(part: bytes) -> None:
    with pytest.raises(ServiceError) as raised:
        request.understood(b'{"model":"m",' + part + b"}")
    assert raised.value.status == 400


def test_fields_without_effect_are_accepted() -> None:
    neutral = understood(
        store=True,
        user="u",
        safety_identifier="s",
        metadata={"a": "b"},
        client_metadata={"session_id": "1", "turn": {"n": 1}},
        service_tier="auto",
        prompt_cache_key="k",
        prompt_cache_retention="24h",
        prompt_cache_options={"mode": "implicit"},
        max_tool_calls=3,
        moderation=None,
        previous_response_id=None,
        conversation=None,
        background=False,
        prompt=None,
        truncation="disabled",
        include=["web_search_call.action.sources"],
        top_logprobs=0,
        context_management=[],
        stream=True,
        stream_options={"include_obfuscation": False},
        text={"verbosity": "low"},
        reasoning={"summary": "auto", "generate_summary": "concise", "mode": "standard"},
    ).neutral
    assert neutral.messages == [{"role": "user", "content": "Hi"}]
    assert dict(neutral.sampling) == {"max_tokens": None, "logprobs": None}
    assert (neutral.tools, neutral.guide, neutral.effort, neutral.one_call) == ([], None, None, False)


def test_sampling_is_passed_on_under_the_engines_names() -> None:
    sampling: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 3,
        "presence_penalty": 1.5,
    }
    assert dict(understood(max_output_tokens=7, **sampling).neutral.sampling) == {
        **sampling,
        "max_tokens": 7,
        "logprobs": None,
    }


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [
        ({}, None),
        ({"top_logprobs": 0}, None),
        ({"top_logprobs": 3}, 3),
        ({"include": ["message.output_text.logprobs"]}, 0),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, 2),
    ],
)
def test_log_probabilities_are_asked_for_by_either_field(fields: dict[str, Any], logprobs: int | None) -> None:
    assert understood(**fields).neutral.sampling["logprobs"] == logprobs


@pytest.mark.parametrize("effort", [None, *get_args(Effort)])
def test_an_effort_is_passed_on(effort: str | None) -> None:
    assert understood(reasoning={"effort": effort}).neutral.effort == effort


@pytest.mark.parametrize(
    ("context", "preserved"), [(None, None), ("auto", None), ("all_turns", True), ("current_turn", False)]
)
def test_a_context_says_whether_thoughts_of_earlier_turns_are_kept(context: str | None, preserved: bool | None) -> None:
    assert understood(reasoning={"context": context}).neutral.preserve_thinking is preserved


def test_calls_one_at_a_time_end_the_answer_after_the_first() -> None:
    assert understood(parallel_tool_calls=False, tools=[WEATHER]).neutral.one_call


def test_a_format_is_a_guide_of_its_schema() -> None:
    formats = ({"type": "json_object"}, {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True})
    for asked in formats:
        neutral = understood(text={"format": asked}).neutral
        assert neutral.guide is not None
        guide = neutral.guide()
        assert guide is not None
        assert (guide.kind, guide.param) == (GuideKind.JSON_SCHEMA, "text.format.schema")
    assert understood(text={"format": {"type": "text"}}).neutral.guide is None


@pytest.mark.parametrize(
    ("fields", "rules"),
    [
        ({"tools": [{**WEATHER, "strict": True}]}, "start: BEFORE_CALL calls?"),
        ({"tools": [WEATHER], "tool_choice": "required"}, "start: calls\n"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}}, "start: calls\n"),
        ({"tools": [WEATHER], "text": {"format": {"type": "json_object"}}}, "start: calls | %json"),
    ],
)
def test_tools_are_a_guide_where_calls_are_constrained(fields: dict[str, Any], rules: str) -> None:
    neutral = understood(**fields).neutral
    assert neutral.guide is not None
    guide = neutral.guide()
    assert guide is not None
    assert guide.source.startswith(rules)


def test_tools_that_are_not_strict_leave_the_answer_free() -> None:
    neutral = understood(tools=[WEATHER, AGENTS]).neutral
    assert neutral.guide is not None
    assert neutral.guide() is None


def test_errors_have_the_requests_names() -> None:
    tools = understood(tools=[WEATHER, AGENTS]).tools
    named = {
        "prompt": "input",
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "temperature": "temperature",
        "tools[0].function.parameters.properties.city": "tools[0].parameters.properties.city",
        "tools[2].function.parameters": "tools[1].tools[1].parameters",
        "tools[9].function.parameters": "tools[9].function.parameters",
        "tools": "tools",
        "response_format.properties": "text.format.schema.properties",
    }
    for given, told in named.items():
        assert request.in_request_words(errors.invalid("no", given), tools).parameter == told
    assert request.in_request_words(errors.closing(), tools).parameter is None


def test_the_number_of_tokens_is_asked_for_with_fewer_fields() -> None:
    body = {"input": "Hi", "instructions": "Be brief.", "tools": [WEATHER], "reasoning": {"effort": "none"}}
    counted = request.counted(json.dumps(body).encode())
    assert counted.model is None
    assert counted.neutral.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert counted.neutral.effort == "none"
    assert [tool["function"]["name"] for tool in counted.neutral.tools] == ["weather"]
    for field, value in {"stream": True, "personality": "friendly", "previous_response_id": "r"}.items():
        with pytest.raises(ServiceError) as raised:
            request.counted(json.dumps({**body, field: value}).encode())
        assert raised.value.parameter == field
