"""The response object around the output, and the size of a growing answer, without a server."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from openai.types.responses import Response

from qwonnx.handlers import errors
from qwonnx.handlers.chat.parts import End, EndReason, Part
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.responses import request
from qwonnx.handlers.responses.writer import ResponseWriter
from qwonnx.runtime.text.answer_events import ContentDelta, ReasoningDelta
from tests.handlers.responses.bodies import AGENTS, PATCH, WEATHER, understood
from tests.handlers.responses.streams import END, events, sent, whole
from tests.handlers.responses.test_output import TOOLS, answers

pytestmark = pytest.mark.fast


def test_a_response_says_what_it_was_asked_for() -> None:
    fields: dict[str, Any] = {
        "instructions": "Be brief.",
        "max_output_tokens": 9,
        "parallel_tool_calls": False,
        "temperature": 0.5,
        "top_p": 0.9,
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
    }
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    document = whole(
        END,
        **fields,
        tools=[WEATHER, {"type": "web_search"}, PATCH, AGENTS],
        tool_choice={"type": "function", "name": "weather"},
        reasoning={"effort": "low", "summary": "auto"},
        text={"format": schema, "verbosity": "low"},
        store=True,
    )
    Response.model_validate(document)
    assert {key: document[key] for key in fields} == fields
    assert document["tools"] == [WEATHER, PATCH, AGENTS]
    assert document["tool_choice"] == {"type": "function", "name": "weather"}
    assert document["reasoning"] == {"effort": "low", "summary": "auto"}
    assert document["text"] == {"format": schema, "verbosity": "low"}
    assert (document["store"], document["background"], document["truncation"]) == (False, False, "disabled")
    assert (document["object"], document["model"], document["status"]) == ("response", "m", "completed")
    assert document["usage"] == {
        "input_tokens": 7,
        "output_tokens": 3,
        "total_tokens": 10,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 1},
    }
    assert re.fullmatch(r"resp_[0-9a-f]{32}", document["id"])
    assert document["completed_at"] >= document["created_at"]


def test_what_was_not_asked_for_is_null_or_its_default() -> None:
    document = whole(ContentDelta("a"), END)
    nulls = ("error", "incomplete_details", "instructions", "max_output_tokens", "temperature", "top_p", "user")
    assert [document[name] for name in nulls] == [None] * len(nulls)
    assert (document["tools"], document["tool_choice"], document["metadata"]) == ([], "auto", {})
    assert document["parallel_tool_calls"] is True
    assert document["text"] == {"format": {"type": "text"}}


def test_tools_that_were_sent_in_many_lines_come_back_in_one() -> None:
    body = json.dumps({"model": "m", "input": "Hi", "stream": True, "tools": [WEATHER]}, indent=2).encode()
    document = msgspec.json.encode(ResponseWriter(request.understood(body), "m")._response)
    assert b"\n" not in document
    assert json.loads(document)["tools"] == [WEATHER]


def test_all_events_of_a_stream_name_one_response() -> None:
    told = events(ContentDelta("a"), END)
    responses = [event["response"] for event in told if "response" in event]
    assert [response["status"] for response in responses] == ["in_progress", "in_progress", "completed"]
    assert len({response["id"] for response in responses}) == 1
    assert len({response["created_at"] for response in responses}) == 1


def test_an_answer_that_goes_on_has_its_token() -> None:
    end = End(EndReason.LENGTH, END.usage, "token")
    assert whole(end)["continuation"] == "token"
    assert events(end)[-1]["response"]["continuation"] == "token"
    assert "continuation" not in whole(END)


def test_a_whole_answer_that_fails_fails() -> None:
    with pytest.raises(ServiceError, match="shutting down"):
        whole(ContentDelta("a"), errors.closing())


def test_every_kind_of_failure_has_a_code_that_the_client_knows() -> None:
    for kind in ErrorKind:
        error = ServiceError(kind, 500, "no")
        assert events(error)[-1]["response"]["error"]["code"] in (
            "server_error",
            "rate_limit_exceeded",
            "invalid_prompt",
        )


def measured(parts: Sequence[Part], *, stream: bool, **fields: Any) -> int:
    writer = ResponseWriter(understood(**fields), "m")
    return sum(len(writer.piece(part, stream=stream)) for part in parts)


@settings(deadline=None, max_examples=50)
@given(answers())
def test_the_measured_size_is_never_below_the_real_one(parts: list[Part]) -> None:
    fields: dict[str, Any] = {"tools": TOOLS, "include": ["reasoning.encrypted_content"], "instructions": "Be brief."}
    frame = 2048  # the usage, an empty message, the head: far less than what every answer has for it
    parts = [ContentDelta("a"), *parts]  # whose size counts the frames of the response
    assert measured(parts, stream=True, **fields) + frame >= len(sent(*parts, **fields))
    assert measured(parts, stream=False, **fields) + frame >= len(msgspec.json.encode(whole(*parts, **fields)))


@pytest.mark.parametrize("kind", [ContentDelta, ReasoningDelta])
def test_the_measured_size_of_a_long_answer_is_close_to_the_real_one(kind: Any) -> None:
    parts = [kind("word ")] * 2000 + [END]
    include = ["reasoning.encrypted_content"]
    real = len(sent(*parts, include=include))
    assert real <= measured(parts, stream=True, include=include) <= 1.2 * real
