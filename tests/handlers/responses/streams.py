"""Parts of an answer as a response, and as the events that OpenAI's client reads of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import openai
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from qwonnx.handlers.chat.parts import End, EndReason, Part, Usage
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.responses.writer import ResponseWriter
from qwonnx.runtime.text.answer_events import ArgumentsDelta, CallClosed, CallOpened
from tests.handlers.responses.bodies import understood

END = End(EndReason.STOP, Usage(7, 2, 3, 1))
CUT = End(EndReason.LENGTH, END.usage)
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def call(name: str, *arguments: str) -> list[Part]:
    return [CallOpened(name), *map(ArgumentsDelta, arguments), CallClosed()]


async def given(parts: Sequence[Part | ServiceError]) -> AsyncIterator[Part]:
    for part in parts:
        if isinstance(part, ServiceError):
            raise part
        yield part


def whole(*parts: Part | ServiceError, **fields: Any) -> dict[str, Any]:
    writer = ResponseWriter(understood(**fields), "m")
    document: dict[str, Any] = json.loads(asyncio.run(writer.whole(given(parts))))
    return document


def sent(*parts: Part | ServiceError, **fields: Any) -> bytes:
    """A stream, as it is sent."""

    async def collect() -> bytes:
        writer = ResponseWriter(understood(stream=True, **fields), "m")
        return b"".join([piece async for piece in writer.events(given(parts))])

    return asyncio.run(collect())


def events(*parts: Part | ServiceError, **fields: Any) -> list[dict[str, Any]]:
    """The data of all events, each valid by the types of OpenAI's client."""
    found = []
    for text in sent(*parts, **fields).decode().removesuffix("\n\n").split("\n\n"):
        name, data = text.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        _EVENT.validate_python(event)
        found.append(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def read_by_the_client(stream: bytes, **fields: Any) -> tuple[list[Any], openai.types.responses.Response]:
    """The events and the last response that OpenAI's client reads of a stream."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with (
        openai.OpenAI(base_url="http://server/v1", api_key="k", http_client=http) as client,
        client.responses.stream(model="m", input="Hi", **fields) as reader,
    ):
        told: list[Any] = list(reader)
    return told, told[-1].response
