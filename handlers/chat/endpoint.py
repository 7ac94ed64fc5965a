"""A chat over HTTP, whole or as a stream of events; an API brings its words as an AnswerWriter.

A client that leaves ends its generation within one step, streaming or not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Protocol

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.chat.answer import Answer, begin
from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.chat.parts import Part
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.http import deadline, sse
from qwonnx.handlers.http.disconnect import while_connected
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine


class AnswerWriter(Protocol):
    """How an API writes one answer. Parts come as Answer.parts says, its errors included."""

    @property
    def id(self) -> str:
        """The answer's, also in the engine's log."""

    async def whole(self, parts: AsyncIterator[Part]) -> bytes:
        """The answer as the JSON text of one body. What `parts` raises is the caller's."""

    def events(self, parts: AsyncIterator[Part]) -> AsyncGenerator[bytes, None]:
        """The answer as encoded events, the last of which says that it ended, or what `parts` raised."""


async def respond(
    request: Request, engine: Engine, chat: ChatRequest, writer: AnswerWriter, *, stream: bool
) -> Response:
    """Answer a chat.

    Args:
        request: whose body has been read.
        engine: that answers.
        chat: what the body asks for.
        writer: writes the answer.
        stream: as events.

    Raises:
        ServiceError: the request is refused, or the answer failed before anything was sent.
        ClientDisconnect: the client left first.
    """
    settings: ServerSettings = request.app.state.settings
    capsules: CapsuleStore | None = request.app.state.capsules
    ends_at = deadline.of_request(request.scope, settings)
    beginning = partial(begin, engine, chat, request_id=writer.id, deadline=ends_at, capsules=capsules)
    if not stream:
        return await while_connected(request.receive, _whole(beginning, writer))
    answer = await beginning()
    if deadline.of_invocation(request.scope) is not None:
        await answer.begun()  # the answer goes out in one piece, so its status can still tell
    return sse.EventStream(writer.events(answer.parts), answer, background=_background(answer))


async def _whole(beginning: Callable[[], Awaitable[Answer]], writer: AnswerWriter) -> Response:
    async with await beginning() as answer:
        content = await writer.whole(answer.parts)
    return Response(content, media_type="application/json", background=_background(answer))


def _background(answer: Answer) -> BackgroundTask | None:
    """Done once the answer is out; a function's invocation lasts until it is done."""
    return None if answer.saving is None else BackgroundTask(answer.saving)
