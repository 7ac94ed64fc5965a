"""Rendering against transformers, on the template of the test checkpoints, and the limits of a template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from qwonnx.runtime.errors import InvalidRequestError, TemplateError
from qwonnx.runtime.text import chat_template as module
from qwonnx.runtime.text.chat_template import ChatTemplate

pytestmark = pytest.mark.fast

SOURCE = (Path(__file__).parents[2] / "checkpoints" / "chat_template.jinja").read_text(encoding="utf-8")
TEMPLATE = ChatTemplate(SOURCE)

USER = {"role": "user", "content": "Wie heißt 世界? <b>&\n"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather <now> & später",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ARGUMENTS = {"city": "Zürich", "days": 3, "exact": True, "area": {"lat": 1.5}, "note": None}
CALL = {
    "role": "assistant",
    "content": "Let me see.",
    "tool_calls": [{"function": {"name": "weather", "arguments": ARGUMENTS}}],
}
RESULT = {"role": "tool", "content": "sunny"}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [USER],
    "with a system message": [{"role": "system", "content": "Be brief."}, USER],
    "with parts": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    "with thinking in the past": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nWorld."}, USER],
    "with reasoning content": [USER, {"role": "assistant", "content": "World.", "reasoning_content": "hm"}],
    "with a tool call": [USER, CALL, RESULT, RESULT],
    "with two calls and no content": [USER, {**CALL, "content": "", "tool_calls": CALL["tool_calls"] * 2}, RESULT],  # type: ignore[operator]
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("thinking", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_is_that_of_transformers(
    name: str, tools: list[dict[str, Any]] | None, thinking: dict[str, bool], prompt: bool
) -> None:
    messages = CONVERSATIONS[name]
    expected, _ = render_jinja_template(
        conversations=[messages], tools=tools, chat_template=SOURCE, add_generation_prompt=prompt, **thinking
    )
    found = TEMPLATE.render(messages, tools=tools, add_generation_prompt=prompt, **thinking)
    assert found == expected[0]


def test_arguments_given_as_json_text_render_like_the_object() -> None:
    as_text = {"name": "weather", "arguments": json.dumps(ARGUMENTS)}
    with_text = {**CALL, "tool_calls": [{"id": "1", "type": "function", "function": as_text}]}
    assert TEMPLATE.render([USER, with_text]) == TEMPLATE.render([USER, CALL])
    assert as_text["arguments"].startswith("{")  # the caller's message is unchanged


@pytest.mark.parametrize(
    "arguments", ["[1]", "null", "no", "}", "{]", "{a", '{"a": 1} x', "[" * 100_000, '{"a":' * 100_000]
)
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    with pytest.raises(TemplateError, match="arguments of a tool call"):
        TEMPLATE.render([USER, call])


@pytest.mark.parametrize(
    "messages", [[], [{"role": "system", "content": "x"}], [{"role": "user", "content": 3}], [USER, {"role": "nobody"}]]
)
def test_the_templates_own_complaint_is_kept(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(TemplateError) as ours:
        TEMPLATE.render(messages)
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever transformers raises
        render_jinja_template(conversations=[messages], chat_template=SOURCE, add_generation_prompt=True)
    assert str(ours.value) == str(theirs.value)
    assert isinstance(ours.value, InvalidRequestError)
    assert ours.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ missing.field }}",
        "{% include 'etc' %}",
    ],
)
def test_a_template_cannot_leave_the_sandbox_or_crash_the_server(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source).render([USER])


def test_what_a_template_writes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RENDERED_CHARACTERS", 1000)
    with pytest.raises(TemplateError, match="exceeds 1000 characters"):
        ChatTemplate("{% for i in range(300) %}xxxx{% endfor %}").render([USER])


def test_a_malformed_or_endless_source_is_refused() -> None:
    # The last one is valid Jinja, but Jinja compiles it to invalid Python.
    for source in ("{% if %}", "{{ " + "(" * 9999, "{% for a in b %}" * 25 + "{% endfor %}" * 25):
        with pytest.raises(TemplateError, match="malformed"):
            ChatTemplate(source)
    with pytest.raises(TemplateError, match="characters"):
        ChatTemplate("x" * ((1 << 20) + 1))


def test_loop_controls_and_the_clock_are_there() -> None:
    source = "{% for i in range(5) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}{{ strftime_now('%%') }}"
    assert ChatTemplate(source).render([]) == "01%"
