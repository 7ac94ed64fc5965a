"""Golden strings of the Qwen 3.5 chat format, rendered by the runtime; the comments give the reason of each rule."""

from __future__ import annotations

from typing import Any

import pytest

from qwonnx.runtime.errors import TemplateError
from qwonnx.runtime.text.chat_template import ChatTemplate
from tests.checkpoints import chat_template

pytestmark = pytest.mark.fast

Message = dict[str, Any]

TEMPLATE = ChatTemplate(chat_template())
USER: Message = {"role": "user", "content": "hi"}
USER_TURN = "<|im_start|>user\nhi<|im_end|>\n"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
TOOLS_TEXT = """# Tools

You have access to the following functions:

<tools>
{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within \
<tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell \
the user about function calls
</IMPORTANT>"""


def render(*messages: Message, **arguments: Any) -> str:
    return TEMPLATE.render(list(messages), **{"add_generation_prompt": False, **arguments})


def call(name: str, **arguments: Any) -> Message:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_no_messages_are_refused() -> None:
    with pytest.raises(TemplateError, match=r"^No messages provided\.$"):
        render()


def test_text_parts_are_joined_and_trimmed_as_one() -> None:
    parts = [{"type": "text", "text": "  a "}, {"type": "text", "text": "b\n"}]
    assert render({"role": "user", "content": parts}) == "<|im_start|>user\na b<|im_end|>\n"


@pytest.mark.parametrize(
    "item", [{"type": "image"}, {"image": "x.png"}, {"type": "image_url", "image_url": {"url": "x.png"}}]
)
def test_an_image_becomes_its_placeholder(item: Message) -> None:
    parts = [item, {"type": "text", "text": "what?"}]
    assert render({"role": "user", "content": parts}) == f"<|im_start|>user\n{IMAGE}what?<|im_end|>\n"


def test_a_video_becomes_its_placeholder() -> None:
    assert render({"role": "user", "content": [{"type": "video"}]}) == f"<|im_start|>user\n{VIDEO}<|im_end|>\n"


def test_pictures_and_videos_are_numbered_over_the_whole_conversation_when_asked() -> None:
    first = {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "image"}]}
    second = {"role": "user", "content": [{"type": "image"}]}
    assert render(first, second, add_vision_id=True) == (
        f"<|im_start|>user\nPicture 1: {IMAGE}Video 1: {VIDEO}Picture 2: {IMAGE}<|im_end|>\n"
        f"<|im_start|>user\nPicture 3: {IMAGE}<|im_end|>\n"
    )


def test_an_item_of_another_type_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"^Unexpected item type in content\.$"):
        render({"role": "user", "content": [{"type": "audio"}]})


def test_a_content_of_another_type_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"^Unexpected content type\.$"):
        render({"role": "user", "content": 7})


@pytest.mark.parametrize("message", [{"role": "assistant", "content": None}, {"role": "assistant"}])
def test_a_content_that_is_missing_is_empty(message: Message) -> None:
    assert render(message, USER) == "<|im_start|>assistant\n<|im_end|>\n" + USER_TURN


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_system_message_with_a_picture_is_refused(kind: str) -> None:
    with pytest.raises(TemplateError, match=f"System message cannot contain {kind}s"):
        render({"role": "system", "content": [{"type": kind}]}, USER)


def test_tools_come_before_the_system_text() -> None:
    rendered = render({"role": "system", "content": " Be brief. "}, USER, tools=[TOOL])
    assert rendered == f"<|im_start|>system\n{TOOLS_TEXT}\n\nBe brief.<|im_end|>\n{USER_TURN}"


@pytest.mark.parametrize("opening", [[], [{"role": "system", "content": "  "}]])
def test_tools_make_a_system_turn_of_their_own(opening: list[Message]) -> None:
    assert render(*opening, USER, tools=[TOOL]) == f"<|im_start|>system\n{TOOLS_TEXT}<|im_end|>\n{USER_TURN}"


def test_each_tool_is_a_line() -> None:
    lines = render(USER, tools=[TOOL, TOOL]).split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]


def test_a_system_message_without_tools_is_rendered_as_it_is() -> None:
    assert render({"role": "system", "content": "Be brief.\n"}, USER) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{USER_TURN}"
    )


def test_there_is_no_default_system_prompt() -> None:
    assert render(USER) == USER_TURN


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "hello"}],
        [{"role": "system", "content": "Be brief."}],
        [{"role": "user", "content": "<tool_response>\n1\n</tool_response>"}],
    ],
)
def test_a_conversation_without_a_question_is_refused(messages: list[Message]) -> None:
    with pytest.raises(TemplateError, match=r"^No user query found in messages\.$"):
        render(*messages)


def test_a_later_system_message_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"^System message must be at the beginning\.$"):
        render(USER, {"role": "system", "content": "Be brief."})


@pytest.mark.parametrize("role", ["developer", "function", ""])
def test_an_unknown_role_is_refused(role: str) -> None:
    with pytest.raises(TemplateError, match=r"^Unexpected message role\.$"):
        render(USER, {"role": role, "content": "Be brief."})


def test_thoughts_before_the_last_question_are_dropped() -> None:
    answer = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."}
    assert render(USER, answer, USER) == USER_TURN + "<|im_start|>assistant\nHello.<|im_end|>\n" + USER_TURN


@pytest.mark.parametrize(
    "answer",
    [
        {"content": "<think>\nhm\n</think>\n\nHello."},
        {"content": "hm\n</think>\n\nHello."},  # as the model generates it: the opening tag was in the prompt
        {"content": "Hello.", "reasoning_content": "\nhm\n"},
    ],
)
def test_thoughts_after_the_last_question_are_kept(answer: Message) -> None:
    rendered = render(USER, {"role": "assistant", **answer})
    assert rendered == USER_TURN + "<|im_start|>assistant\n<think>\nhm\n</think>\n\nHello.<|im_end|>\n"


def test_an_answer_without_thoughts_after_the_last_question_has_an_empty_think_block() -> None:
    rendered = render(USER, {"role": "assistant", "content": "Hello."})
    assert rendered == USER_TURN + "<|im_start|>assistant\n<think>\n\n</think>\n\nHello.<|im_end|>\n"


def test_a_tool_answer_in_a_user_turn_is_not_a_question() -> None:
    answer = {"role": "assistant", "content": "Hello.", "reasoning_content": "hm"}
    response = {"role": "user", "content": "<tool_response>\n1\n</tool_response>"}
    assert "<think>\nhm\n</think>" in render(USER, answer, response)


def test_tool_calls_follow_the_text_and_each_other() -> None:
    calls = [call("weather", city="Paris", days=3), {"name": "now", "arguments": {}}]  # nested, and flat
    answer = {"role": "assistant", "content": "Let me see.", "tool_calls": calls}
    assert render(USER, answer) == USER_TURN + (
        "<|im_start|>assistant\n<think>\n\n</think>\n\nLet me see.\n\n"
        "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call><|im_end|>\n"
    )


@pytest.mark.parametrize("content", ["", None, "  \n"])
def test_a_tool_call_without_text_begins_the_turn(content: str | None) -> None:
    rendered = render(USER, {"role": "assistant", "content": content, "tool_calls": [call("now")]}, USER)
    assert "<|im_start|>assistant\n<tool_call>\n<function=now>\n</function>\n</tool_call><|im_end|>\n" in rendered


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Zürich <&>", "Zürich <&>"),
        (True, "True"),  # the spelling of Python, which Qwen 3.5 was trained on
        (None, "None"),
        (1.5, "1.5"),
        ([1, True, "ü"], '[1, true, "ü"]'),
        ({"a": None}, '{"a": null}'),
    ],
)
def test_arguments_are_spelt_as_the_model_learnt_them(value: Any, text: str) -> None:
    rendered = render(USER, {"role": "assistant", "content": "", "tool_calls": [call("f", x=value)]})
    assert f"<parameter=x>\n{text}\n</parameter>\n" in rendered


def test_consecutive_tool_results_are_one_user_turn() -> None:
    asked = {"role": "assistant", "content": "", "tool_calls": [call("f"), call("g")]}
    results = [{"role": "tool", "content": " 1 "}, {"role": "tool", "content": "2"}]
    turn = "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
    assert render(USER, asked, *results).endswith("</tool_call><|im_end|>\n" + turn)
    assert render(USER, asked, *results, asked, results[0]).count("<|im_start|>user\n<tool_response>") == 2


@pytest.mark.parametrize(
    ("arguments", "opening"),
    [
        ({}, "<think>\n"),
        ({"enable_thinking": True}, "<think>\n"),
        ({"enable_thinking": None}, "<think>\n"),
        ({"enable_thinking": False}, "<think>\n\n</think>\n\n"),
    ],
)
def test_generation_starts_inside_the_thoughts_unless_thinking_is_off(arguments: Message, opening: str) -> None:
    rendered = render(USER, add_generation_prompt=True, **arguments)
    assert rendered == USER_TURN + "<|im_start|>assistant\n" + opening


@pytest.mark.parametrize(
    ("arguments", "opening"),
    [
        ({}, "<think>\n\n</think>\n\n"),
        ({"enable_thinking": False}, "<think>\n\n</think>\n\n"),
        ({"enable_thinking": None}, "<think>\n\n</think>\n\n"),
        ({"enable_thinking": True}, "<think>\n"),
    ],
)
def test_the_smallest_models_think_only_when_asked_to(arguments: Message, opening: str) -> None:
    template = ChatTemplate(chat_template(thinks_by_default=False))
    assert template.render([USER], **arguments) == USER_TURN + "<|im_start|>assistant\n" + opening


def test_the_soft_switches_of_qwen_3_are_ordinary_text() -> None:
    rendered = render({"role": "user", "content": "hi /no_think"}, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nhi /no_think<|im_end|>\n<|im_start|>assistant\n<think>\n"
