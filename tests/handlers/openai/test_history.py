"""A client sends answers back as history: every call that an answer can have is accepted, cut ones too."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from qwonnx.handlers.openai import chat_request, engine_request
from qwonnx.runtime.text.answer_events import ContentDelta, ReasoningDelta, ToolCall
from qwonnx.runtime.text.chat_template import ChatTemplate
from tests.runtime.text.answer_account import parse
from tests.runtime.text.templates import QWEN_TEMPLATES
from tests.runtime.text.tool_call_texts import TOOLS, cases


@cache
def template(name: str) -> ChatTemplate:
    return ChatTemplate(QWEN_TEMPLATES[name])


def rendered(answer: dict[str, Any], name: str) -> str:
    messages = [{"role": "user", "content": "Hi"}, answer]
    messages += [{"role": "tool", "content": "ok", "tool_call_id": call["id"]} for call in answer.get("tool_calls", ())]
    body = {"model": "m", "messages": messages, "tools": TOOLS}
    request = engine_request.neutral(chat_request.parse(json.dumps(body).encode()))
    return str(template(name).render(request.messages, tools=request.tools))


def as_message(text: str, thinking_open: bool, *, cut_off: bool) -> dict[str, Any]:
    """The message that an answer with this text is."""
    events = parse([text], thinking_open, cut_off=cut_off)
    calls = [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": event.name, "arguments": event.arguments_json},
        }
        for number, event in enumerate(event for event in events if isinstance(event, ToolCall))
    ]
    message: dict[str, Any] = {"role": "assistant"}
    message["content"] = "".join(event.text for event in events if isinstance(event, ContentDelta))
    if reasoning := "".join(event.text for event in events if isinstance(event, ReasoningDelta)):
        message["reasoning_content"] = reasoning
    return message | ({"tool_calls": calls} if calls else {})


@pytest.mark.parametrize("name", QWEN_TEMPLATES)
def test_every_answer_is_accepted_as_history(name: str) -> None:
    for case in cases():
        message = as_message(case.text, case.thinking_open, cut_off=False)
        text = rendered(message, name)
        for call in message.get("tool_calls", ()):
            assert f"<function={call['function']['name']}>" in text


def test_every_answer_that_was_cut_off_is_accepted_as_history() -> None:
    for number, case in enumerate(cases()):
        cut = number * 37 % (len(case.text) + 1)
        message = as_message(case.text[:cut], case.thinking_open, cut_off=True)
        text = rendered(message, "Qwen 3.5")
        for call in message.get("tool_calls", ()):
            assert f"<function={call['function']['name']}>" in text


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_an_answer_that_was_cut_in_its_arguments_is_accepted_with_what_it_has(cut: int) -> None:
    arguments = '{"s": "a \\"quoted\\" text", "o": {"x": [1, 2.5, null]}}'
    call = {"id": "c", "type": "function", "function": {"name": "made.up name/of:it", "arguments": arguments[:cut]}}
    text = rendered({"role": "assistant", "content": None, "tool_calls": [call]}, "Qwen 3.5")
    assert "<function=made.up name/of:it>" in text
    assert ("<parameter=s>" in text) == (cut > len('{"s": '))
    assert ("<parameter=o>" in text) == (cut > arguments.index("{", 1))
