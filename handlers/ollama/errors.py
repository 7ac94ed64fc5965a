"""Errors in Ollama's format: `{"error": "message"}`."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from qwonnx.handlers.errors import ServiceError


class ErrorBody(msgspec.Struct):
    error: str


def body(error: ServiceError) -> ErrorBody:
    """An error as the body of an answer, or as a line in the middle of a stream."""
    return ErrorBody(error.message)


def response(error: ServiceError) -> Response:
    """An error as a response."""
    return Response(msgspec.json.encode(body(error)), error.status, dict(error.headers), "application/json")
