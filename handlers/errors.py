"""What a client is told when something goes wrong: OpenAI's error body, and the one place that maps errors to it.

    {"error": {"message", "type", "param", "code"}}

No answer holds a traceback, a path or a piece of another request; what we did wrong ourselves goes to the log.
"""

from __future__ import annotations

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.runtime.errors import EngineClosedError, InvalidRequestError, QueueFullError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
RETRY_AFTER_SECONDS = 1


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error: an HTTP status and OpenAI's four fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(ErrorDetail(message, kind, param, code))
        self.headers = headers or {}

    @classmethod
    def of(cls, error: InvalidRequestError | QueueFullError | EngineClosedError) -> ApiError:
        """What a client is told of the runtime's refusal of its request."""
        if isinstance(error, InvalidRequestError):
            return cls(400, str(error), param=error.param, code=error.code)
        headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
        if isinstance(error, QueueFullError):
            return cls(429, str(error), kind="rate_limit_error", code="queue_full", headers=headers)
        return closing()

    def response(self) -> Response:
        return Response(msgspec.json.encode(self.body), self.status, self.headers, "application/json")


def closing() -> ApiError:
    """The server stops: another instance, or this one later, can answer."""
    message = "the server is shutting down: send the request again"
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)}
    return ApiError(503, message, kind=SERVER_ERROR, code="server_closing", headers=headers)


def out_of_time() -> ApiError:
    """Nothing of the answer was there when it had to end."""
    message = "the answer did not begin in the time there is: shorten the conversation, or allow more time"
    # OpenAI's clients send most requests again that failed so; this one would fail again.
    headers = {"x-should-retry": "false"}
    return ApiError(504, message, kind=SERVER_ERROR, code="deadline_exceeded", headers=headers)


def internal() -> ApiError:
    """A fault of ours; the log has the details under the request's id."""
    message = "the server failed to answer: see its log under this request's x-request-id"
    return ApiError(500, message, kind=SERVER_ERROR, code="internal_error")


async def answer_api_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of ApiError."""
    assert isinstance(error, ApiError)
    return error.response()


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's handler of its own exceptions: an unknown route, a method that a route does not have."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    message = {
        404: f"no such route: {path}: there are /v1/chat/completions and /v1/models, and a base URL ends in /v1",
        405: f"{request.method} is not allowed on {path}",
    }.get(error.status_code, error.detail)
    code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code)
    return ApiError(error.status_code, message, code=code, headers=dict(error.headers or {})).response()
