"""Lines of the logs as JSON, for collectors: one object a line."""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

from qwonnx.handlers.http.finished_request import FinishedRequest

ACCESS_LOGGER = "qwonnx.access"


def access_line(finished: FinishedRequest, method: str, path: str, request_id: str) -> str:
    """A line of the access log.

    Args:
        finished: the request.
        method, path: quoted, as the client sent them.
        request_id: of the answer's x-request-id.
    """
    fields: dict[str, Any] = {
        "time": _time(time.time()),
        "level": "INFO",
        "logger": ACCESS_LOGGER,
        "method": method,
        "path": path,
        "endpoint": finished.endpoint,
        "status": finished.status,
        "seconds": round(finished.seconds, 6),
        "request_id": request_id,
    }
    if finished.key_name:
        fields["key"] = finished.key_name
    usage = finished.usage
    if usage.total_tokens:
        fields["prompt_tokens"] = usage.prompt_tokens
        fields["cached_tokens"] = usage.cached_tokens
        fields["generated_tokens"] = usage.generated_tokens
    for name in ("first_token_seconds", "seconds_per_token"):
        seconds_of = getattr(finished, name)
        if seconds_of is not None:
            fields[name] = round(seconds_of, 6)
    return msgspec.json.encode(fields).decode()


class JsonLines(logging.Formatter):
    """Every other line as an object with time, level, logger and message; those of the access log are one already."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.name == ACCESS_LOGGER and message.startswith("{"):
            return message
        fields = {
            "time": _time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields).decode()


def _time(seconds: float) -> str:
    """UTC, with milliseconds: RFC 3339."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
