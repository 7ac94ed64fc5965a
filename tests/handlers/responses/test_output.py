"""Any answer as events: the official client puts them together to the same response that a whole answer is."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.handlers import errors
from qwonnx.handlers.chat.parts import Begun, End, EndReason, Part, Resumed
from qwonnx.handlers.responses.sealed_reasoning import opened
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened, ContentDelta, ReasoningDelta
from tests.handlers.responses.bodies import AGENTS, PATCH, WEATHER
from tests.handlers.responses.streams import CUT, END, call, events, read_by_the_client, sent, whole

pytestmark = pytest.mark.fast

TOOLS = [WEATHER, PATCH, AGENTS]
_IDS = {"reasoning": "rs", "message": "msg", "function_call": "fc", "custom_tool_call": "ctc"}

_texts = st.lists(st.text('ab "\\\n\u00e9\U0001f600', max_size=5), max_size=4)
_names = st.sampled_from(["weather", "patch", "agents__close", "agents__patch", "made_up"])
_arguments = st.one_of(_texts, st.lists(st.sampled_from(['{"input": "', "a", "\\n", '"}', "{}"]), max_size=5))


@st.composite
def answers(draw: st.DrawFn) -> list[Part]:
    """Parts in an order that a model can give: thoughts, then text and calls, then an end."""
    parts: list[Part] = [Begun(7, 2)]
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from([ReasoningDelta, ContentDelta, None]))
        if kind is None:
            parts += call(draw(_names), *draw(_arguments))
        else:
            parts += map(kind, draw(_texts))
    if draw(st.booleans()):
        return [*parts, draw(st.sampled_from([END, End(EndReason.CALLS, END.usage), CUT]))]
    return [*parts, CallOpened(draw(_names)), *map(ArgumentsDelta, draw(_arguments)), CUT]


def without_ids(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in output]


def joined(told: list[dict[str, Any]]) -> dict[str, str]:
    """The deltas of each item, by its id and the kind of delta."""
    texts: dict[str, str] = {}
    for event in told:
        if event["type"].endswith(".delta"):
            key = f"{event['item_id']} {event['type'].removesuffix('.delta')}"
            texts[key] = texts.get(key, "") + event["delta"]
    return {key: text for key, text in texts.items() if text}


def texts_of(output: list[dict[str, Any]]) -> dict[str, str]:
    """The same of final items."""
    texts: dict[str, str] = {}
    for item in output:
        found = {
            "response.function_call_arguments": item.get("arguments"),
            "response.custom_tool_call_input": item.get("input"),
        }
        if item["type"] == "message":
            found["response.output_text"] = "".join(part["text"] for part in item["content"])
        if item["type"] == "reasoning":
            found["response.reasoning_text"] = "".join(part["text"] for part in item["content"])
            found["response.reasoning_summary_text"] = "".join(part["text"] for part in item["summary"])
        texts |= {f"{item['id']} {kind}": text for kind, text in found.items() if text}
    return texts


@settings(deadline=None, max_examples=50)
@given(answers(), st.booleans())
def test_the_client_reads_of_any_stream_what_the_whole_answer_says(parts: list[Part], encrypted: bool) -> None:
    include = ["reasoning.encrypted_content"] if encrypted else []
    fields: dict[str, Any] = {"tools": TOOLS, "include": include}
    told = events(*parts, **fields)
    last = told[-1]["response"]
    document = whole(*parts, **fields)
    assert without_ids(last["output"]) == without_ids(document["output"])
    of_its_own = dict.fromkeys(("output", "id", "created_at", "completed_at"))
    assert last | of_its_own == document | of_its_own
    assert told[-1]["type"] == f"response.{document['status']}"
    # Every delta and every finished item belongs to an item of the final output, at its place.
    assert joined(told) == texts_of(last["output"])
    assert [event["item"] for event in told if event["type"] == "response.output_item.done"] == last["output"]
    opened_items = [event["item"] for event in told if event["type"] == "response.output_item.added"]
    assert [item["id"] for item in opened_items] == [item["id"] for item in last["output"]]
    assert all(re.fullmatch(rf"{_IDS[item['type']]}_[0-9a-f]{{32}}", item["id"]) for item in opened_items)
    for event in told:
        if "item_id" in event:
            assert last["output"][event["output_index"]]["id"] == event["item_id"]


@settings(deadline=None, max_examples=50)
@given(answers())
def test_the_clients_own_reader_follows_any_stream(parts: list[Part]) -> None:
    stream = sent(*parts, tools=TOOLS)
    told, response = read_by_the_client(stream, tools=TOOLS)
    snapshots = {event.item_id: event.snapshot for event in told if hasattr(event, "snapshot")}
    output = response.model_dump(mode="json")["output"]
    said = {item["id"]: item["content"][0]["text"] for item in output if item["type"] == "message"}
    called = {item["id"]: item["arguments"] for item in output if item["type"] == "function_call"}
    assert snapshots == {key: text for key, text in {**said, **called}.items() if text}


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in told]


def test_the_events_of_each_kind_of_item_come_in_openais_order() -> None:
    told = events(
        ReasoningDelta("H"),
        ReasoningDelta("m."),
        ContentDelta("I look."),
        *call("weather", "{", "}"),
        *call("agents__patch", '{"input": "a', 'b"}'),
        End(EndReason.CALLS, END.usage),
        tools=TOOLS,
    )
    assert kinds(told) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_summary_part.added",
        "reasoning_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]
    output = told[-1]["response"]["output"]
    assert without_ids(output)[2:] == [
        {"type": "function_call", "name": "weather", "arguments": "{}", "status": "completed"},
        {"type": "custom_tool_call", "name": "patch", "namespace": "agents", "input": "ab", "status": "completed"},
    ]
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", item["call_id"]) for item in output[2:])
    assert len({item["call_id"] for item in output[2:]}) == 2


def test_an_answer_that_was_cut_is_incomplete_and_its_open_call_stays_open() -> None:
    told = events(ContentDelta("a"), CallOpened("weather"), ArgumentsDelta('{"city": "Os'), CUT, tools=TOOLS)
    last = told[-1]["response"]
    assert told[-1]["type"] == "response.incomplete"
    assert (last["status"], last["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in last["output"]] == ["completed", "incomplete"]
    assert last["output"][1]["arguments"] == '{"city": "Os'
    assert whole(CUT)["output"] == []


def test_an_answer_without_text_and_calls_has_an_empty_message() -> None:
    for parts in ((END,), (ReasoningDelta("Hm."), END)):
        *_, message = whole(*parts)["output"]
        assert (message["type"], message["content"][0]["text"]) == ("message", "")


def test_an_answer_that_fails_ends_with_what_there_is() -> None:
    told = events(ContentDelta("a"), errors.internal())
    last = told[-1]["response"]
    assert (told[-1]["type"], last["status"]) == ("response.failed", "failed")
    assert last["error"]["code"] == "server_error"
    assert "x-request-id" in last["error"]["message"]
    assert last["output"][0]["content"][0]["text"] == "a"
    assert last["output"][0]["id"] == told[2]["item"]["id"]
    refused = events(errors.invalid("too complex", "text.format.schema"))[-1]["response"]
    assert refused["error"] == {"code": "invalid_prompt", "message": "too complex"}


def test_encrypted_reasoning_is_there_if_it_is_asked_for() -> None:
    asked = whole(ReasoningDelta("Hm."), ContentDelta("a"), END, include=["reasoning.encrypted_content"])
    assert opened(asked["output"][0]["encrypted_content"]) == "Hm."
    assert "encrypted_content" not in whole(ReasoningDelta("Hm."), END)["output"][0]


def test_the_rest_of_a_call_that_another_request_began_is_an_item() -> None:
    rest: list[Part] = [Begun(7, 2), Resumed(2, "agents__patch"), ArgumentsDelta('b"}'), CallClosed()]
    (item,) = whole(*rest, End(EndReason.CALLS, END.usage), tools=TOOLS)["output"]
    assert (item["type"], item["name"], item["namespace"], item["input"]) == (
        "custom_tool_call",
        "patch",
        "agents",
        "b",
    )
    assert kinds(events(Begun(7, 2), Resumed(2), ContentDelta("a"), END))[2] == "output_item.added"
