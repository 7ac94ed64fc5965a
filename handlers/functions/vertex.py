"""Google Vertex AI: `qwonnx serve --platform vertex` answers on AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE.

The predict route takes a conversation as the API does (rawPredict, streamRawPredict), whole or streamed. It also takes
one as the only element of `instances` (predict); the answer is then the only element of `predictions`. Vertex checks
who calls, and keeps the Authorization header.

AIP_STORAGE_URI names a folder or a bucket that is mounted. Nothing is downloaded, because a server sends nothing out:
put the artifact into the image, or mount its bucket.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from qwonnx.handlers import errors
from qwonnx.handlers.app import create_app
from qwonnx.handlers.functions.extensions import answer, conversations, refuse_events
from qwonnx.handlers.functions.platform import Platform
from qwonnx.handlers.http import health
from qwonnx.handlers.http.body import BodyLimits, read_with, received
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.http.json_size import has_too_many_values
from qwonnx.handlers.http.replayed import with_body
from qwonnx.handlers.http.sse import EventStream
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings


class _Wrapped(msgspec.Struct):
    """Vertex's body. Fields that it does not have belong to a conversation, or are nobody's."""

    instances: msgspec.Raw
    parameters: msgspec.Raw = msgspec.Raw(b"null")


_DECODER = msgspec.json.Decoder(_Wrapped)
_INSTANCES = msgspec.json.Decoder(list[msgspec.Raw])
_NOTHING = (b"null", b"{}")


def application(host: ModelHost, settings: ServerSettings, platform: Platform) -> ASGIApp:
    """The application with Vertex's two routes."""
    extension = Extension(
        apis=[conversations(platform.predict_route, _predict)],
        routes=[Route(platform.health_route, health.ready, methods=["GET"])],
        middleware=refuse_events("predict, rawPredict or streamRawPredict"),
    )
    return create_app(host, settings, extension)


async def _predict(request: Request) -> Response:
    limits: BodyLimits = request.app.state.bodies
    async with received(request, limits) as data:
        instance = await read_with(_instance, data)
        body = bytes(data) if instance is None else instance
    response = await answer(with_body(request, body))
    if instance is None or isinstance(response, EventStream):
        return response
    content = b'{"predictions":[' + bytes(response.body) + b"]}"
    return Response(content, response.status_code, media_type="application/json", background=response.background)


def _instance(data: bytearray) -> bytes | None:
    """The conversation in `instances`; None if the body is no object with it.

    Raises:
        ServiceError: 400, there is not exactly one, or there are parameters beside it.
    """
    if has_too_many_values(data):
        return None  # the API refuses it
    try:
        wrapped = _DECODER.decode(data)
        instances = _INSTANCES.decode(wrapped.instances)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # also a ValidationError; the API says what is wrong
    if bytes(wrapped.parameters).translate(None, b" \t\r\n") not in _NOTHING:
        raise errors.invalid("parameters have no effect here: put them into the instance", "parameters")
    if len(instances) != 1:
        message = f"instances has {len(instances)} elements: send one conversation a request"
        raise errors.invalid(message, "instances")
    return bytes(instances[0])
