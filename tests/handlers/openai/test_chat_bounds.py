"""Bounds of a chat request's parts."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from qwonnx.handlers.chat.bounds import MAX_CALLS, MAX_MESSAGES, MAX_PARTS, MAX_VALUES
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.openai import chat_request
from qwonnx.runtime.sampling.params import MAX_STOP_LENGTH

pytestmark = pytest.mark.fast

USER = {"role": "user", "content": "x"}
PART = {"type": "text", "text": "x"}


def _call(arguments: str = "{}") -> dict[str, Any]:
    return {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}


def _calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


def _body(messages: list[Any], **fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


def test_what_is_just_small_enough_passes() -> None:
    for messages in (
        [USER] * MAX_MESSAGES,
        [{"role": "user", "content": [PART] * (MAX_PARTS // 2)}] * 2,
        [USER, _calling(*[_call()] * MAX_CALLS)],
        [USER, _calling(_call("[" + "1," * (MAX_VALUES - 2) + "1]"))],
        [USER, _calling(_call(json.dumps({"text": "[," * MAX_VALUES})))],
    ):
        assert chat_request.parse(_body(messages, stop="x" * MAX_STOP_LENGTH)).messages


@pytest.mark.parametrize(
    ("messages", "fields", "param", "limit"),
    [
        ([USER] * (MAX_MESSAGES + 1), {}, "messages", MAX_MESSAGES),
        ([USER] * 60_000, {}, "messages", MAX_MESSAGES),
        ([USER, {"role": "user", "content": [PART] * (MAX_PARTS + 1)}], {}, "messages[1].content", MAX_PARTS),
        ([{"role": "user", "content": [PART] * 20}] * 500, {}, "messages[409].content", MAX_PARTS),
        ([_calling(*[_call()] * 1025)] * 2, {}, "messages[1].tool_calls", MAX_CALLS),
        ([_calling(_call("[[]" + ",[]" * MAX_VALUES + "]"))], {}, "messages", MAX_VALUES),
        ([_calling(_call("[1" + ",1" * 30_000 + "]"))] * 2, {}, "messages", MAX_VALUES),
        ([USER], {"stop": "x" * (MAX_STOP_LENGTH + 1)}, "stop", MAX_STOP_LENGTH),
        ([USER], {"stop": ["x", "x" * (MAX_STOP_LENGTH + 1)]}, "stop", MAX_STOP_LENGTH),
    ],
)
def test_more_is_refused_by_the_limit(messages: list[Any], fields: dict[str, Any], param: str, limit: int) -> None:
    body = _body(messages, **fields)
    began = time.perf_counter()
    with pytest.raises(ServiceError, match=str(limit)) as refusal:
        chat_request.parse(body)
    assert (refusal.value.status, refusal.value.parameter) == (400, param)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [' + b"[]," * 3_000_000 + b"1]}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"seed":' + b"1" * 1_000_000 + b"}",
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"' + b" - at `$" * 100_000 + b'":1}',
    ],
    ids=["values", "lists", "objects", "number", "name"],
)
def test_hostile_texts_are_refused_at_once_in_a_short_line(body: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(ServiceError) as refusal:
        chat_request.parse(body)
    assert refusal.value.status == 400
    assert len(refusal.value.message) <= 1000
    assert len(refusal.value.parameter or "") <= 200
    assert "\n" not in refusal.value.message
    assert time.perf_counter() - began < 2
