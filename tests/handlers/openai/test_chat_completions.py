"""Parts of an answer in OpenAI's objects, whole and as chunks, without a server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from qwonnx.handlers import errors
from qwonnx.handlers.chat.parts import End, EndReason, Part, Resumed, Usage
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.openai import chat_request
from qwonnx.handlers.openai.completion_writer import CompletionWriter
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened, ContentDelta, ReasoningDelta

pytestmark = pytest.mark.fast

END = End(EndReason.STOP, Usage(7, 2, 3, 1))
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 2},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def writer(**fields: Any) -> CompletionWriter:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return CompletionWriter(chat_request.parse(json.dumps(body).encode()), "m", "fp_1")


def call(name: str, *arguments: str) -> list[Part]:
    return [CallOpened(name), *map(ArgumentsDelta, arguments), CallClosed()]


async def given(parts: Sequence[Part | ServiceError]) -> AsyncIterator[Part]:
    for part in parts:
        if isinstance(part, ServiceError):
            raise part
        yield part


def whole(*parts: Part | ServiceError) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(asyncio.run(writer().whole(given(parts))))
    return document


def events(*parts: Part | ServiceError, **fields: Any) -> list[Any]:
    """The data of all events, [DONE] unchanged."""

    async def collect() -> list[bytes]:
        return [event async for event in writer(stream=True, **fields).events(given(parts))]

    texts = [event.decode().removeprefix("data: ").removesuffix("\n\n") for event in asyncio.run(collect())]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


def test_a_whole_answer_has_its_parts_put_together() -> None:
    document = whole(ReasoningDelta("He "), ReasoningDelta("asks."), ContentDelta("Ye"), ContentDelta("s."), END)
    assert document["choices"] == [
        {
            "message": {"content": "Yes.", "role": "assistant", "refusal": None, "reasoning_content": "He asks."},
            "finish_reason": "stop",
            "index": 0,
            "logprobs": None,
        }
    ]
    assert document["usage"] == USAGE
    assert (document["object"], document["model"], document["system_fingerprint"]) == ("chat.completion", "m", "fp_1")
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", document["id"])


def test_content_is_null_with_calls_alone_and_empty_without_anything() -> None:
    called = whole(*call("a", "{}"), *call("b", '{"n":', "1}"), End(EndReason.CALLS, END.usage))["choices"][0]
    assert called["message"]["content"] is None
    assert called["finish_reason"] == "tool_calls"
    calls = called["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "a", "arguments": "{}"},
        {"name": "b", "arguments": '{"n":1}'},
    ]
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", call["id"]) for call in calls)
    assert len({call["id"] for call in calls}) == 2
    silent = whole(END)["choices"][0]["message"]
    assert silent["content"] == ""
    assert "tool_calls" not in silent
    assert "reasoning_content" not in silent


@pytest.mark.parametrize(
    ("reason", "name"), [(EndReason.STOP, "stop"), (EndReason.LENGTH, "length"), (EndReason.CALLS, "tool_calls")]
)
def test_every_end_has_a_name_of_openais(reason: EndReason, name: str) -> None:
    end = End(reason, END.usage)
    assert whole(end)["choices"][0]["finish_reason"] == name
    assert events(end)[-2]["choices"][0]["finish_reason"] == name


def test_a_whole_answer_that_fails_fails() -> None:
    with pytest.raises(ServiceError, match="shutting down"):
        whole(ContentDelta("a"), errors.closing())


def test_a_stream_has_one_chunk_for_each_part_between_the_role_and_the_end() -> None:
    *chunks, done = events(ReasoningDelta("Hm."), ContentDelta("I look."), *call("a", "{", "}"), *call("b", "{}"), END)
    assert done == "[DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[:3] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        {"content": "I look."},
    ]
    calls = [delta["tool_calls"][0] for delta in deltas[3:8]]
    assert [(call["index"], call["function"]) for call in calls] == [
        (0, {"name": "a", "arguments": ""}),
        (0, {"arguments": "{"}),
        (0, {"arguments": "}"}),
        (1, {"name": "b", "arguments": ""}),
        (1, {"arguments": "{}"}),
    ]
    assert [("id" in call, call.get("type")) for call in calls] == [
        (True, "function"),
        (False, None),
        (False, None),
        (True, "function"),
        (False, None),
    ]
    assert deltas[8] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 8 + ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_a_call_that_goes_on_has_its_index_and_no_id_in_a_stream_and_the_rest_of_its_arguments_in_a_whole() -> None:
    parts: list[Part] = [Resumed(3, "c"), ArgumentsDelta('lo"'), ArgumentsDelta("}"), CallClosed(), *call("d", "{}")]
    ends = End(EndReason.CALLS, END.usage)
    deltas = [chunk["choices"][0]["delta"] for chunk in events(*parts, ends)[:-1]]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[:2] == [
        {"index": 2, "function": {"arguments": 'lo"'}},
        {"index": 2, "function": {"arguments": "}"}},
    ]
    assert (calls[2]["index"], calls[2]["function"]["name"], "id" in calls[2]) == (3, "d", True)
    found = whole(*parts, ends)["choices"][0]["message"]["tool_calls"]
    assert [each["function"] for each in found] == [
        {"name": "c", "arguments": 'lo"}'},
        {"name": "d", "arguments": "{}"},
    ]
    assert events(Resumed(2), *call("c", "{}"), ends)[1]["choices"][0]["delta"]["tool_calls"][0]["index"] == 2


def test_a_call_that_was_cut_off_is_left_open() -> None:
    parts: list[Part] = [CallOpened("a"), ArgumentsDelta('{"n": [1'), End(EndReason.LENGTH, END.usage)]
    choice = whole(*parts)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "a", "arguments": '{"n": [1'}
    assert [chunk["choices"][0]["finish_reason"] for chunk in events(*parts)[:-1]][-1] == "length"


def test_usage_that_was_asked_for_comes_last_and_is_null_before() -> None:
    *chunks, last, done = events(ContentDelta("a"), END, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 3
    assert (last["choices"], last["usage"]) == ([], USAGE)


def test_an_error_in_the_middle_is_the_last_event_and_nothing_says_that_it_went_well() -> None:
    *_, before, last = events(ContentDelta("a"), errors.internal())
    assert before["choices"][0]["delta"] == {"content": "a"}
    assert last == {
        "error": {
            "message": "the server failed to answer: see its log under this request's x-request-id",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
    }


def test_two_answers_have_two_identities() -> None:
    assert writer().id != writer().id
