"""Errors in OpenAI's format: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from qwonnx.handlers.errors import ErrorKind, ServiceError

INVALID_REQUEST = "invalid_request_error"
_TYPES = {
    ErrorKind.BUSY: "rate_limit_error",
    ErrorKind.UNAVAILABLE: "server_error",
    ErrorKind.TIMEOUT: "server_error",
    ErrorKind.INTERNAL: "server_error",
}


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


def body(error: ServiceError) -> ErrorBody:
    """An error as the body of an answer, or as an event in the middle of a stream."""
    kind = _TYPES.get(error.kind, INVALID_REQUEST)
    return ErrorBody(ErrorDetail(error.message, kind, error.parameter, error.code))


def response(error: ServiceError) -> Response:
    """An error as a response."""
    headers = dict(error.headers)
    if error.is_final:
        headers["x-should-retry"] = "false"  # OpenAI's clients retry most requests with this status
    return Response(msgspec.json.encode(body(error)), error.status, headers, "application/json")
