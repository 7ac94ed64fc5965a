"""Bodies with any value in any place: each is a request, or a 400 that says why. Never another error."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.responses import request
from qwonnx.handlers.responses.sealed_reasoning import sealed
from qwonnx.handlers.responses.writer import ResponseWriter
from qwonnx.runtime.errors import InvalidRequestError
from tests.handlers.responses.bodies import AGENTS, PATCH, WEATHER
from tests.handlers.whole.fuzzed_bodies import trees

pytestmark = pytest.mark.fast

EXAMPLES = int(os.environ.get("QWONNX_FUZZED_RESPONSES", "50"))
BODY: dict[str, Any] = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [
        {"role": "developer", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "role": "user", "content": "Hi", "id": "msg_1", "status": "completed"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}], "content": None},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": sealed("Hm.")},
        {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "b"}]},
        {"type": "custom_tool_call", "call_id": "d", "name": "patch", "input": "x", "namespace": "agents"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": "done"},
        {"type": "item_reference", "id": "rs_3"},
    ],
    "tools": [{**WEATHER, "strict": True}, PATCH, AGENTS, {"type": "web_search"}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
    "reasoning": {"effort": "low", "summary": "auto"},
    "include": ["reasoning.encrypted_content"],
    "metadata": {"a": "b"},
    "temperature": 1,
    "top_logprobs": 1,
    "seed": 1,
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within a value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@st.composite
def bodies(draw: st.DrawFn) -> Any:
    body = copy.deepcopy(BODY)
    for path in draw(st.lists(st.sampled_from(places(BODY)), min_size=1, max_size=3)):
        *way, last = path
        holder: Any = body
        try:
            for key in way:
                holder = holder[key]
            if draw(st.booleans()):
                holder[last] = draw(trees)
            elif isinstance(holder, dict) and draw(st.booleans()):
                holder[draw(st.sampled_from([last, "wish", "type", "role", "namespace"]))] = holder.pop(last)
            else:
                del holder[last]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change has taken the place
    return body


@settings(deadline=None, max_examples=EXAMPLES)
@given(bodies(), st.booleans())
def test_every_body_is_a_request_or_a_400(body: Any, strict: bool) -> None:
    assert refusal_of(json.dumps(body).encode(), strict=strict) in (None, 400)


def refusal_of(data: bytes, *, strict: bool) -> int | None:
    """The status with which a body is refused; None if it is answered."""
    try:
        understood = request.understood(data, strict_tools=strict)
    except ServiceError as error:
        return error.status
    ResponseWriter(understood, "m")
    try:
        if understood.neutral.guide is not None:
            understood.neutral.guide()
    except InvalidRequestError as error:
        return request.in_request_words(errors.refused(error), understood.tools).status
    return None
