"""Errors of requests, independent of an API: a kind, a status, the parameter at fault, a code and a message.

Handlers raise a ServiceError; the API of the path renders it as its own body (http/api.py). A message does not contain
a traceback, a path or a part of another request: details of our own faults go to the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from qwonnx.runtime.errors import EngineClosedError, InvalidRequestError, QueueFullError

RETRY_AFTER_SECONDS = 1
_MAX_MESSAGE, _MAX_PARAMETER = 1000, 200  # characters; names that clients choose are part of them


class ErrorKind(Enum):
    """The meaning of an error for a client; each API has its own name for it."""

    INVALID = "invalid"  # the request cannot be answered as it is
    UNAUTHENTICATED = "unauthenticated"  # the key is missing or wrong
    NOT_FOUND = "not_found"  # the route or the model does not exist
    TOO_LARGE = "too_large"  # the body has too many bytes
    BUSY = "busy"  # too many requests wait
    UNAVAILABLE = "unavailable"  # the model loads, has failed, or the server stops
    TIMEOUT = "timeout"  # the answer did not begin before its deadline
    INTERNAL = "internal"  # a fault of ours


class ServiceError(Exception):
    """A request that is refused, or an answer that failed.

    Args:
        kind: its meaning.
        status: of HTTP, 400 to 599.
        message: one line with the cause and the remedy; also str() of the error.
        parameter: the request's parameter at fault, or None.
        code: a stable identifier of the cause for programs; None for an ordinary invalid value.
        headers: of the answer, such as retry-after.
        is_final: the same request would fail again, although its status suggests a retry.
    """

    def __init__(
        self,
        kind: ErrorKind,
        status: int,
        message: str,
        *,
        parameter: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        is_final: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.message = _cut(message, _MAX_MESSAGE)
        self.parameter = None if parameter is None else _cut(parameter, _MAX_PARAMETER)
        self.code = code
        self.headers = dict(headers or {})
        self.is_final = is_final

    def renamed(self, parameter: str) -> ServiceError:
        """The same error, with the client's name of the parameter."""
        return ServiceError(
            self.kind,
            self.status,
            self.message,
            parameter=parameter,
            code=self.code,
            headers=self.headers,
            is_final=self.is_final,
        )


def invalid(message: str, parameter: str | None = None, code: str | None = None) -> ServiceError:
    """A request that cannot be answered as it is: 400."""
    return ServiceError(ErrorKind.INVALID, 400, message, parameter=parameter, code=code)


def refused(error: InvalidRequestError | QueueFullError | EngineClosedError) -> ServiceError:
    """The runtime's refusal of a request: 400, 429 or 503. Parameters have the runtime's names."""
    if isinstance(error, InvalidRequestError):
        return invalid(str(error), error.param, error.code)
    if isinstance(error, QueueFullError):
        return ServiceError(ErrorKind.BUSY, 429, str(error), code="queue_full", headers=_retry_after())
    return closing()


def not_ready(reason: str) -> ServiceError:
    """The model is not ready, or has failed: 503."""
    message = f"the model {reason}"
    return ServiceError(ErrorKind.UNAVAILABLE, 503, message, code="model_not_ready", headers=_retry_after())


def too_many_held(max_held: int) -> ServiceError:
    """The model loads, and as many requests as may wait for it do: 429."""
    message = f"the model is loading, and {max_held} requests wait for it already: try again later"
    return ServiceError(ErrorKind.BUSY, 429, message, code="model_not_ready", headers=_retry_after())


def closing() -> ServiceError:
    """The server stops; another instance can answer, or this one later: 503."""
    message = "the server is shutting down: send the request again"
    return ServiceError(ErrorKind.UNAVAILABLE, 503, message, code="server_closing", headers=_retry_after())


def out_of_time() -> ServiceError:
    """The deadline passed before the first output: 504."""
    message = "the answer did not begin before its deadline: shorten the conversation, or allow more time"
    return ServiceError(ErrorKind.TIMEOUT, 504, message, code="deadline_exceeded", is_final=True)


def internal() -> ServiceError:
    """A fault of ours; the log has the details under the request's id. 500."""
    message = "the server failed to answer: see its log under this request's x-request-id"
    return ServiceError(ErrorKind.INTERNAL, 500, message, code="internal_error")


def _cut(text: str, length: int) -> str:
    """The text in one line; a client's name may have line breaks."""
    text = "\\n".join(text[: length + 1].splitlines())
    return text if len(text) <= length else text[: length - 3] + "..."


def _retry_after() -> dict[str, str]:
    return {"retry-after": str(RETRY_AFTER_SECONDS)}
