"""The deadline of an answer: shortly before its invocation times out, after the settings' limit, or after the client's.

At the deadline an answer ends as if it had reached its token limit. If it has not begun, the request fails with a 504.
Times are those of the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers import errors
from qwonnx.handlers.settings import ServerSettings

HEADER = "x-request-timeout"
_MOST_SECONDS = 1e6
_KEY = "qwonnx.deadline"
_ARRIVED = "qwonnx.arrived"
_STREAMS = "qwonnx.deadline.streams"

# Time after the last token: to encode the answer, to pass it on, and to wait for a processor.
_MARGIN_SECONDS = 1.0


class InvocationDeadline:
    """ASGI middleware for function handlers: the end of an invocation, minus a margin, is the deadline.

    The margin is one second, or half of the remaining time if that is less.

    Args:
        remaining_seconds: of the invocation that a scope belongs to; None without a limit.
        streams: whether the platform passes pieces of this answer on as they come.
    """

    def __init__(
        self,
        app: ASGIApp,
        remaining_seconds: Callable[[Scope], float | None],
        *,
        streams: Callable[[Scope], bool] = lambda scope: False,
    ) -> None:
        self._app = app
        self._remaining_seconds = remaining_seconds
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        told = self._remaining_seconds(scope)
        if told is not None:
            remaining = max(0.0, told)
            margin = min(_MARGIN_SECONDS, remaining / 2)
            scope[_STREAMS] = self._streams(scope)
            scope[_KEY] = asyncio.get_running_loop().time() + remaining - margin
        await self._app(scope, receive, send)


def of_invocation(scope: Scope) -> float | None:
    """The invocation's deadline; None without an invocation, or without a limit."""
    deadline: float | None = scope.get(_KEY)
    return deadline


def note_arrival(scope: Scope) -> None:
    """Let the settings' limit count from now, for a request that is about to wait for the model."""
    scope[_ARRIVED] = asyncio.get_running_loop().time()


def is_sent_as_a_whole(scope: Scope) -> bool:
    """Whether the answer belongs to an invocation that passes it on when it is complete."""
    return of_invocation(scope) is not None and not scope.get(_STREAMS, False)


def of_request(scope: Scope, settings: ServerSettings) -> float | None:
    """The earliest of the invocation's deadline, the settings' limit and the client's; None without any.

    The limits count from the noted arrival, or from now.

    Raises:
        ServiceError: 400, the client's limit is not a number of seconds.
    """
    limits = (settings.max_answer_seconds, _asked_seconds(scope))
    arrived = scope.get(_ARRIVED) or asyncio.get_running_loop().time()
    found = [of_invocation(scope), *(None if limit is None else arrived + limit for limit in limits)]
    return min((deadline for deadline in found if deadline is not None), default=None)


def _asked_seconds(scope: Scope) -> float | None:
    """The client's limit; None without one.

    Raises:
        ServiceError: 400.
    """
    text = Headers(scope=scope).get(HEADER) if "headers" in scope else None
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MOST_SECONDS:
        raise errors.invalid(f"the header {HEADER} is {text!r}: send seconds, such as 30", code="invalid_header")
    return seconds
