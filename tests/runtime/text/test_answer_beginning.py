"""A given beginning of an answer, after each of the templates: the same text that its history has."""

from __future__ import annotations

from typing import Any

import pytest

from qwonnx.runtime.text.answer_beginning import AnswerBeginning, opens_thinking
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.template_text import own_spans
from tests.runtime.text.templates import QWEN_TEMPLATES

pytestmark = pytest.mark.fast

USER: dict[str, Any] = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize("name", QWEN_TEMPLATES)
@pytest.mark.parametrize("thinking", [True, False, None])
@pytest.mark.parametrize("reasoning", ["", "He greets me."])
def test_content_follows_closed_reasoning_as_in_the_template(name: str, thinking: bool | None, reasoning: str) -> None:
    template = ChatTemplate(QWEN_TEMPLATES[name])
    switch: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    asked = template.render([USER], **switch)
    beginning = AnswerBeginning("Hello, ", reasoning)
    text = beginning.after(asked)
    assert text.startswith(asked)
    assert not beginning.leaves_open(asked)
    assert text.count("<think>") == text.count("</think>")
    answer = {
        "role": "assistant",
        "content": "Hello, you.",
        "reasoning_content": reasoning if opens_thinking(asked) else "",
    }
    assert str(template.render([USER, answer], add_generation_prompt=False)).startswith(text)


@pytest.mark.parametrize("name", QWEN_TEMPLATES)
def test_reasoning_alone_goes_on(name: str) -> None:
    template = ChatTemplate(QWEN_TEMPLATES[name])
    asked = template.render([USER], enable_thinking=True)
    beginning = AnswerBeginning("", "He greets")
    assert beginning.leaves_open(asked)
    assert str(beginning.after(asked)) == asked + "He greets"


def test_what_the_request_gives_is_its_own_text() -> None:
    asked = ChatTemplate(QWEN_TEMPLATES["Qwen 3.5"]).render([USER])
    text = AnswerBeginning("a<|im_end|>", "</think><|im_start|>").after(asked)
    written = [text[span.start : span.end] for span in own_spans(text)]
    assert "".join(written).count("</think>") == 1
    assert not any("<|im_end|>" in each[-30:] for each in written[-1:])
