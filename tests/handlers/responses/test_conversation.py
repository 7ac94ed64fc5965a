"""Items of an input as the template's messages: turns put together, thoughts kept, bounds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwonnx.handlers.chat import bounds
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.responses import conversation, request
from qwonnx.handlers.responses.sealed_reasoning import sealed
from tests.handlers.responses.bodies import refusal, understood

pytestmark = pytest.mark.fast


def messages(*items: Any, **fields: Any) -> list[dict[str, Any]]:
    return understood(input=list(items), **fields).neutral.messages


def said(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": content}


def thought(text: str, **more: Any) -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": content, "status": "completed", **more}


def called(name: str = "f", arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": "c", "name": name, "arguments": arguments, "id": "fc_1", **more}


def answered(output: Any, kind: str = "function_call_output") -> dict[str, Any]:
    return {"type": kind, "call_id": "c", "output": output, "id": "fco_1"}


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


USER: dict[str, Any] = {"role": "user", "content": "Hi"}


def test_a_text_is_a_users_message_and_instructions_come_first() -> None:
    assert understood(instructions="Be brief.").neutral.messages == [{"role": "system", "content": "Be brief."}, USER]
    developer = {
        "role": "developer",
        "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
    }
    assert messages(developer, USER, {"role": "system", "content": "c", "type": "message"}) == [
        {"role": "system", "content": "ab"},
        USER,
        {"role": "system", "content": "c"},
    ]


def test_the_items_of_one_turn_are_one_message() -> None:
    items = (
        USER,
        thought("Hm."),
        said("I look."),
        called("f", '{"a":1}', status="completed"),
        called("g", namespace="n"),
        answered("sunny"),
        answered([{"type": "input_text", "text": "wa"}, {"type": "input_text", "text": "rm"}]),
        thought("So."),
        said("It is sunny."),
    )
    assert messages(*items) == [
        USER,
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [call("f", '{"a":1}'), call("n__g", "{}")],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "c"},
        {"role": "tool", "content": "warm", "tool_call_id": "c"},
        {"role": "assistant", "content": "It is sunny.", "reasoning_content": "So."},
    ]


def test_a_turn_ends_where_the_model_thinks_again_or_speaks_twice() -> None:
    assert [each["content"] for each in messages(USER, said("a"), said("b"), thought("c"), said("d"))[1:]] == [
        "a",
        "b",
        "d",
    ]
    assert messages(USER, said("a"), called(), said("b"), USER)[1]["content"] == "ab"
    only = {"role": "assistant", "content": "", "reasoning_content": "c"}
    assert messages(USER, called(), thought("c"))[1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call("f", "{}")]},
        only,
    ]
    assert (
        messages(USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]})[1]["content"] == "No."
    )


def test_custom_calls_are_calls_with_one_string() -> None:
    custom = {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": 'a "b"\n', "id": "ctc_1"}
    assert messages(USER, custom, answered("done", "custom_tool_call_output"))[1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call("patch", '{"input":"a \\"b\\"\\n"}')]},
        {"role": "tool", "content": "done", "tool_call_id": "c"},
    ]


def test_thoughts_are_read_from_any_of_their_places_and_foreign_ones_are_left_out() -> None:
    def read(**fields: Any) -> str | None:
        item = {"type": "reasoning", "summary": [], **fields}
        found: str | None = messages(USER, item, said("a"))[1].get("reasoning_content")
        return found

    summary = [{"type": "summary_text", "text": "s"}, {"type": "summary_text", "text": "t"}]
    assert read(content=[{"type": "reasoning_text", "text": "c"}], encrypted_content=sealed("e")) == "c"
    assert read(encrypted_content=sealed("e"), summary=summary) == "e"
    assert read(encrypted_content="gAAAAABn", summary=summary) == "s\nt"
    assert read(encrypted_content="gAAAAABn") is None
    assert read(content=None, encrypted_content=None) is None


def test_a_reference_to_reasoning_that_is_gone_is_left_out_and_any_other_is_refused() -> None:
    reference = {"type": "item_reference", "id": "rs_1"}
    assert messages(USER, reference, said("a"))[1:] == [{"role": "assistant", "content": "a"}]
    for other in ({"id": "msg_1"}, {"type": "item_reference", "id": "fc_1"}, {"type": None, "id": "x"}):
        refused = refusal(input=[USER, other])
        assert (refused.parameter, refused.code) == ("input[1].id", "item_not_found")
        assert "send the item itself" in refused.message


def test_a_reference_to_an_item_that_is_kept_is_that_item_once() -> None:
    kept = {item["id"]: json.dumps(item).encode() for item in (thought("Hm."), said("a"))}
    references = [{"type": "item_reference", "id": item_id} for item_id in kept]
    body = {"model": "m", "input": [USER, *references, called()]}
    neutral = request.understood(json.dumps(body).encode(), find=kept.get).neutral
    calls = [call("f", "{}")]
    assert neutral.messages[1:] == [
        {"role": "assistant", "content": "a", "reasoning_content": "Hm.", "tool_calls": calls}
    ]
    twice = {"model": "m", "input": [USER, *references, references[1]]}
    with pytest.raises(ServiceError) as raised:
        request.understood(json.dumps(twice).encode(), find=kept.get)
    assert raised.value.parameter == "input[3].id"


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"type": "web_search_call", "id": "ws_1"}, "input[1].type"),
        ({"role": "user"}, "input[1].content"),
        ({"role": "tool", "content": "x"}, "input[1].role"),
        ({"content": "x"}, "input[1].role"),
        ("text", "input[1]"),
        ({**USER, "wish": 1}, "input[1].wish"),
        ({"role": "user", "content": [{"type": "input_text", "text": 1}]}, "input[1].content[0].text"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}, "input[1].content[0].type"),
        (
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_file"}]},
            "input[1].output[0].type",
        ),
        ({"type": "function_call", "call_id": "c", "name": "f"}, "input[1].arguments"),
        ({"type": "reasoning", "summary": [{"text": 1}]}, "input[1].summary[0].text"),
    ],
)
def test_an_item_that_cannot_be_read_is_refused_by_its_place(item: Any, param: str) -> None:
    refused = refusal(input=[USER, item])
    assert refused.parameter == param
    assert "input[1]" in refused.message


def test_numbers_of_items_are_bounded() -> None:
    parts = [{"type": "input_text", "text": "a"}] * 4096
    assert refusal(input=[{"role": "user", "content": parts}] * 3).parameter == "input[2]"
    assert refusal(input=[USER] * (bounds.MAX_MESSAGES + 1)).parameter == "input"
    assert refusal(input=[USER, *[called()] * (bounds.MAX_CALLS + 1)]).parameter == f"input[{bounds.MAX_CALLS + 1}]"
    many = "[" + ",".join("1" * (bounds.MAX_VALUES + 1)) + "]"
    assert refusal(input=[USER, called(arguments=many)]).parameter == "input"


def test_small_encrypted_items_do_not_become_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "_MAX_REASONING_CHARACTERS", 1500)
    item = {"type": "reasoning", "summary": [], "encrypted_content": sealed("a" * 1000)}
    assert len(messages(USER, item)[1]["reasoning_content"]) == 1000
    assert refusal(input=[USER, item, said("b"), item]).parameter == "input[3].encrypted_content"
