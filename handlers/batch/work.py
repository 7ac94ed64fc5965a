"""One piece of work: a request of a batch, and the row that its answer becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the application: its status, its request id, and the object in its body."""

    status: int
    request_id: str
    body: Any

    @property
    def is_right(self) -> bool:
        return self.status == 200

    @property
    def text(self) -> str:
        """The message of a chat's answer; empty if the answer has another form."""
        try:
            return str(self.body["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            return ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no answer: a stable code, and a line for users."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Work:
    """A request.

    custom_id: unique in its batch; it names the row.
    number: of its line, from 1 on.
    path: of the application's route.
    body: the request's JSON.
    group: equal ones begin with the same long text. The first one is answered before the others begin, so that they
        find its states in the prefix cache. None: it shares nothing.
    row: what is written of an answer, in a row that has the custom_id already.
    check: a Failure if an answer cannot be used, and the request is to be asked again.
    """

    custom_id: str
    number: int
    path: str
    body: bytes
    group: bytes | None = None
    row: Callable[[Reply], Row] = field(default=lambda reply: _batch_row(reply))
    check: Callable[[Reply], Failure | None] = field(default=lambda reply: None)


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that is no request. custom_id: if it names one."""

    custom_id: str | None
    number: int
    failure: Failure


def _batch_row(reply: Reply) -> Row:
    """As a row of OpenAI's batches."""
    response = {"status_code": reply.status, "request_id": reply.request_id, "body": reply.body}
    return {"id": f"batch_req_{reply.request_id}", "response": response, "error": None}
