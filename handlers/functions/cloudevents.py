"""CloudEvents, such as Knative Eventing's: `qwonnx serve --platform cloudevents` answers POST / with an event.

An event in binary or structured mode whose data is a conversation, as the API takes it, is answered by one in
structured mode, type ai.qwonnx.answer, whose subject is the id of the asking event. A refusal has the API's status, so
that the sender delivers again or gives up as it should, and an event of type ai.qwonnx.error with the API's error. The
server's own events are taken without an answer: a broker may send its replies back.

An event is whole, so `stream` is refused. Eventing sends no key: let only the broker reach the server, and give
--no-key. The API's other routes are served as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from cloudevents.conversion import to_structured
from cloudevents.exceptions import GenericException
from cloudevents.http import CloudEvent, from_http
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from qwonnx.handlers import errors
from qwonnx.handlers.app import APIS, create_app
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.functions.extensions import answer
from qwonnx.handlers.functions.platform import Platform
from qwonnx.handlers.http.api import Api
from qwonnx.handlers.http.body import BodyLimits, received
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.http.json_size import MAX_VALUES, has_too_many_values
from qwonnx.handlers.http.replayed import with_body
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings

_OURS = "ai.qwonnx."
_ANSWER, _ERROR = f"{_OURS}answer", f"{_OURS}error"
_SOURCE = "qwonnx"
_MEDIA_TYPES = ("application/cloudevents+json", "application/json")  # structured, binary
_MAX_ID_CHARACTERS = 512  # of an event, because its answer repeats it


@dataclass(frozen=True, slots=True)
class _Asked:
    """An event.

    id: its own.
    type: its own.
    conversation: its data, as JSON.
    """

    id: str
    type: str
    conversation: bytes


def application(host: ModelHost, settings: ServerSettings, platform: Platform) -> ASGIApp:
    """The application with a route for events."""
    events = Api(
        prefix="/",  # owns this path alone
        routes=(Route("/", _event, methods=["POST"]),),
        error_response=lambda error: _refusal(error, None),
        hint="send events to /",
    )
    return create_app(host, settings, Extension(apis=[events]))


async def _event(request: Request) -> Response:
    limits: BodyLimits = request.app.state.bodies
    async with received(request, limits, _MEDIA_TYPES) as data:
        asked = await asyncio.to_thread(_read, dict(request.headers), bytes(data))
    if asked.type.startswith(_OURS):
        return Response(status_code=202)
    try:
        if _wants_stream(asked.conversation):
            raise errors.invalid("an event cannot be answered in parts: leave out stream", "stream")
        whole = await answer(with_body(request, asked.conversation))
    except ServiceError as error:
        return _refusal(error, asked.id)
    made = _response(_ANSWER, whole, asked.id)
    made.background = whole.background
    return made


def _read(headers: Mapping[str, str], body: bytes) -> _Asked:
    """The event of a request.

    Raises:
        ServiceError: 400, it is none.
    """
    if has_too_many_values(body):
        raise errors.invalid(f"the event has more than {MAX_VALUES} values: shorten the conversation")
    try:
        event = from_http(headers, body, data_unmarshaller=lambda data: data)
        data = event.get_data()
        conversation = data if isinstance(data, bytes) else _encoded(data)
    # Whatever the package meets in a hostile event, beside its own errors.
    except (GenericException, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        message = "this is not a CloudEvent with JSON data: check its source, or send conversations to the API's routes"
        raise errors.invalid(message, code="invalid_event") from error
    name, kind = event["id"], event["type"]
    if not (isinstance(name, str) and isinstance(kind, str) and len(name) <= _MAX_ID_CHARACTERS):
        message = f"the event's id and type are not texts of at most {_MAX_ID_CHARACTERS} characters: give shorter ones"
        raise errors.invalid(message, code="invalid_event")
    return _Asked(name, kind, conversation)


def _encoded(data: Any) -> bytes:
    if data is None:
        raise ValueError("no data")
    return data.encode() if isinstance(data, str) else msgspec.json.encode(data)


def _wants_stream(conversation: bytes) -> bool:
    try:
        return msgspec.json.decode(conversation, type=_Streamed).stream is True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # the API says what is wrong


class _Streamed(msgspec.Struct):
    stream: Any = None


def _refusal(error: ServiceError, subject: str | None) -> Response:
    return _response(_ERROR, APIS[0].error_response(error), subject)


def _response(kind: str, inner: Response, subject: str | None) -> Response:
    """An API's response as an event, with its status and the headers that are not its body's."""
    attributes = {"type": kind, "source": _SOURCE, "datacontenttype": "application/json"}
    if subject is not None:
        attributes["subject"] = subject
    headers, content = to_structured(CloudEvent(attributes, msgspec.json.decode(bytes(inner.body))))
    kept = {name: value for name, value in inner.headers.items() if not name.startswith("content-")}
    return Response(content, inner.status_code, {**kept, **headers})
