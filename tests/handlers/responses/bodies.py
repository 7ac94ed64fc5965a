"""Bodies of requests, as bytes, and what becomes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.responses import request
from qwonnx.handlers.responses.request import Understood

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}
PATCH: dict[str, Any] = {"type": "custom", "name": "patch", "description": "Changes files."}
AGENTS: dict[str, Any] = {
    "type": "namespace",
    "name": "agents",
    "description": "Other agents.",
    "tools": [{"type": "function", "name": "close", "parameters": {"type": "object", "properties": {}}}, PATCH],
}


def understood(*, strict_tools: bool = False, **fields: Any) -> Understood:
    body = {"model": "m", "input": "Hi", **fields}
    return request.understood(json.dumps(body).encode(), strict_tools=strict_tools)


def refusal(*, strict_tools: bool = False, **fields: Any) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        understood(strict_tools=strict_tools, **fields)
    assert (raised.value.kind, raised.value.status) == (ErrorKind.INVALID, 400)
    return raised.value
