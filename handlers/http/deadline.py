"""By when an answer must have ended: when the invocation that waits for it does, or after the settings' limit.

At that moment an answer ends as one does that has reached its limit of tokens, with what there is of it; if there is
nothing of it yet, the request is refused with a 504. Times are the event loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers.settings import ServerSettings

_KEY = "qwonnx.deadline"

# For what follows the last token: encoding the answer, handing it over, and a loop that has to wait for a processor.
_MARGIN_SECONDS = 1.0


class InvocationDeadline:
    """ASGI middleware for function handlers: what the platform says of an invocation, less a margin.

    The margin is half of what remains where that is less than two seconds.

    Args:
        remaining_seconds: of the invocation that a scope belongs to; None where it has all the time there is.
    """

    def __init__(self, app: ASGIApp, remaining_seconds: Callable[[Scope], float | None]) -> None:
        self._app = app
        self._remaining_seconds = remaining_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        told = self._remaining_seconds(scope)
        if told is not None:
            remaining = max(0.0, told)
            margin = min(_MARGIN_SECONDS, remaining / 2)
            scope[_KEY] = asyncio.get_running_loop().time() + remaining - margin
        await self._app(scope, receive, send)


def of_invocation(scope: Scope) -> float | None:
    """The invocation's; None where there is no invocation, or it has all the time there is."""
    deadline: float | None = scope.get(_KEY)
    return deadline


def of_request(scope: Scope, settings: ServerSettings) -> float | None:
    """The earlier one of the invocation's and of the settings' limit, counted from now; None if there is neither."""
    limit = settings.max_answer_seconds
    found = [of_invocation(scope), None if limit is None else asyncio.get_running_loop().time() + limit]
    return min((deadline for deadline in found if deadline is not None), default=None)
