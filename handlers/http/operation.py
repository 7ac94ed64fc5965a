"""One operation of an API: its route, its body and its answers, from which /openapi.json is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# What an endpoint that generates may answer instead of 200, beside 401 and 405; docs/http-api.md has the causes.
GENERATION_REFUSALS = (400, 404, 408, 413, 415, 429, 500, 503, 504)
READING_REFUSALS = (404, 429, 500, 503)


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation.

    method, path: of the route; parameters in braces.
    summary: one line.
    body: type of the request's JSON, or None.
    answer: type of the answer with status 200, or None: any JSON.
    events: types of the events that a stream has instead.
    stream_type: content type of such a stream.
    refusals: statuses of errors, beside 401.
    error: type of their body.
    status: of the answer.
    others: types to which the schemas of the body refer by name.
    """

    method: str
    path: str
    summary: str
    answer: type | None = None
    body: type | None = None
    events: Sequence[type] = ()
    stream_type: str = "text/event-stream"
    refusals: Sequence[int] = GENERATION_REFUSALS
    error: type | None = None
    status: int = 200
    others: Sequence[type] = ()
