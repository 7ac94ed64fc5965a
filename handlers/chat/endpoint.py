"""A chat over HTTP, as one body or as a stream of events; an API provides an AnswerWriter.

If the client disconnects, its generation ends within one step, streaming or not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol, TypeVar

from msgspec.structs import replace
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from qwonnx.handlers.chat.answer import Answer, Continuing, begin
from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.chat.choices import Numbered, begin_all
from qwonnx.handlers.chat.continuations import Continuations
from qwonnx.handlers.chat.parts import Part
from qwonnx.handlers.chat.request import ChatRequest
from qwonnx.handlers.chat.text_request import TextRequest
from qwonnx.handlers.http import answer_bytes, deadline, sse
from qwonnx.handlers.http.answer_bytes import AnswerRoom
from qwonnx.handlers.http.api_key import name_of, owner_of
from qwonnx.handlers.http.disconnect import while_connected
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine

_BURST = 32  # tokens of an answer that is sent whole
_LAST_TURN = "qwonnx.last_turn"
_ADAPTER = "qwonnx.adapter"


def has_last_turn(scope: Scope) -> None:
    """Say of a request that its chat does not go on, so that the state at the prompt's end need not be kept.

    A copy of the state takes as long as some tokens, and the prompt's last tokens would be read in a step of their own.
    """
    scope[_LAST_TURN] = True


def answering_model(request: Request, name: str) -> str:
    """Check the model that a request names, and return the name; the adapter of this name, if there is one, answers.

    Raises:
        ServiceError: 404, there is no such model; 503, it is not ready.
    """
    host: ModelHost = request.app.state.host
    request.scope[_ADAPTER] = host.adapter_of(host.check_model(name))
    return name


_Part_contra = TypeVar("_Part_contra", contravariant=True)
_Part = TypeVar("_Part")
_Part_co = TypeVar("_Part_co", covariant=True)


class AnswerWriter(Protocol[_Part_contra]):
    """Writes one answer, or several, in an API's format. `parts` are an Answer's or Choices', and raise its errors."""

    @property
    def id(self) -> str:
        """The answer's id, also in the engine's log."""

    @property
    def keep_alive(self) -> bytes:
        """What a stream sends when nothing else comes: an event of the API, or sse.COMMENT. Empty: nothing."""

    def piece(self, part: Part, *, stream: bool) -> bytes:
        """What this part adds to the answer, for its size: of an End nothing."""

    async def whole(self, parts: AsyncIterator[_Part_contra]) -> bytes:
        """The answer as the JSON text of one body. The caller handles the errors of `parts`."""

    def events(self, parts: AsyncIterator[_Part_contra]) -> AsyncGenerator[bytes, None]:
        """The answer as encoded events. The last one says that the answer ended, or which error `parts` raised."""


class Answering(AbstractAsyncContextManager[Any], Protocol[_Part_co]):
    """What is entered while an answer is written: an Answer, or Choices."""

    @property
    def parts(self) -> AsyncGenerator[_Part_co, None]: ...

    @property
    def saving(self) -> Callable[[], None] | None: ...

    async def begun(self) -> None: ...


async def respond(
    request: Request, engine: Engine, chat: ChatRequest | TextRequest, writer: AnswerWriter[Part], *, stream: bool
) -> Response:
    """Answer a chat.

    Args:
        request: its body has been read.
        engine: started.
        chat: the request in the body.
        writer: writes the answer.
        stream: send events.

    Raises:
        ServiceError: the request is refused, or the answer failed before anything was sent.
        ClientDisconnect: the client disconnected first.
    """
    fits = _fits(request.scope, writer, stream=stream)
    # A capsule is made of the state that is kept.
    keeps_end = _LAST_TURN not in request.scope or request.app.state.capsules is not None
    beginning = _beginning(request, engine, chat, writer.id, fits, stream=stream, keeps_end=keeps_end)
    return await _respond(request, beginning, writer, stream=stream)


async def respond_with_choices(
    request: Request,
    engine: Engine,
    chats: Sequence[ChatRequest | TextRequest],
    writer: AnswerWriter[Numbered],
    *,
    stream: bool,
    prompt_is_shared: bool,
) -> Response:
    """Answer with several answers at once, each of its own request.

    Args:
        request, engine, writer, stream: see respond().
        chats: the requests.
        prompt_is_shared: they have the same prompt.

    Raises:
        see respond().
    """
    fits = _fits(request.scope, writer, stream=stream)
    ids = [f"{writer.id}-{number}" for number in range(len(chats))]
    beginnings = [_beginning(request, engine, *each, fits, stream=stream) for each in zip(chats, ids, strict=True)]
    beginning = partial(begin_all, beginnings, prompt_is_shared=prompt_is_shared)
    return await _respond(request, beginning, writer, stream=stream)


def _beginning(
    request: Request,
    engine: Engine,
    chat: ChatRequest | TextRequest,
    request_id: str,
    fits: Callable[[Part], bool] | None,
    *,
    stream: bool,
    keeps_end: bool = True,
) -> Callable[[], Coroutine[Any, Any, Answer]]:
    settings: ServerSettings = request.app.state.settings
    capsules: CapsuleStore | None = request.app.state.capsules
    continuations: Continuations | None = getattr(request.app.state, "continuations", None)
    budget = settings.thinking_budget(chat.effort, chat.thinking_budget)
    # An answer that may end by its content, or go on in another request, is looked at as it comes.
    is_whole = not (stream or fits or chat.one_call or continuations)
    return partial(
        begin,
        engine,
        replace(chat, thinking_budget=budget),
        request_id=request_id,
        deadline=deadline.of_request(request.scope, settings),
        capsules=capsules,
        owner=owner_of(request.scope),
        adapter=request.scope.get(_ADAPTER, ""),
        continuing=None if continuations is None else Continuing(continuations, name_of(request.scope)),
        fits=fits,
        burst=_BURST if is_whole else 1,
        keeps_end=keeps_end,
    )


async def _respond(
    request: Request,
    beginning: Callable[[], Coroutine[Any, Any, Answering[_Part]]],
    writer: AnswerWriter[_Part],
    *,
    stream: bool,
) -> Response:
    if not stream:
        return await while_connected(request.receive, _whole(beginning, writer))
    answer = await while_connected(request.receive, beginning())
    if deadline.is_sent_as_a_whole(request.scope):
        await answer.begun()  # its status can still report an error
    return sse.EventStream(
        writer.events(answer.parts),
        answer,
        keep_alive_seconds=sse.KEEP_ALIVE_SECONDS if writer.keep_alive else None,
        keep_alive=writer.keep_alive,
        background=_background(answer),
    )


async def _whole(
    beginning: Callable[[], Coroutine[Any, Any, Answering[_Part]]], writer: AnswerWriter[_Part]
) -> Response:
    async with (answer := await beginning()):
        content = await writer.whole(answer.parts)
    return Response(content, media_type="application/json", background=_background(answer))


def _fits(scope: Scope, writer: AnswerWriter[Any], *, stream: bool) -> Callable[[Part], bool] | None:
    """Whether the next part fits the platform's limit; None without a limit."""
    limit = answer_bytes.of_request(scope)
    if limit is None:
        return None
    room = AnswerRoom(limit)
    return lambda part: room.takes(writer.piece(part, stream=stream))


def _background(answer: Answering[Any]) -> BackgroundTask | None:
    """Runs after the answer was sent; a function's invocation lasts until then."""
    return None if answer.saving is None else BackgroundTask(answer.saving)
