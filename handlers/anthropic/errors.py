"""Errors in Anthropic's format: `{"type": "error", "error": {"type", "message"}, "request_id"}`."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.responses import Response

from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.http.access_log import current_request_id

_TYPES = {
    ErrorKind.INVALID: "invalid_request_error",
    ErrorKind.UNAUTHENTICATED: "authentication_error",
    ErrorKind.NOT_FOUND: "not_found_error",
    ErrorKind.TOO_LARGE: "request_too_large",
    ErrorKind.BUSY: "rate_limit_error",
    ErrorKind.UNAVAILABLE: "overloaded_error",
    ErrorKind.TIMEOUT: "timeout_error",
    ErrorKind.INTERNAL: "api_error",
}


class ErrorDetail(msgspec.Struct):
    type: str
    message: str


class ErrorBody(msgspec.Struct):
    error: ErrorDetail
    request_id: str
    type: Literal["error"] = "error"


def body(error: ServiceError) -> ErrorBody:
    """An error as the body of an answer, or as an event in the middle of a stream."""
    return ErrorBody(ErrorDetail(_TYPES[error.kind], error.message), current_request_id())


def response(error: ServiceError) -> Response:
    """An error as a response."""
    headers = dict(error.headers)
    if error.is_final:
        headers["x-should-retry"] = "false"  # Anthropic's clients retry most requests with this status
    return Response(msgspec.json.encode(body(error)), error.status, headers, "application/json")
