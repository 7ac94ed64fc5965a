"""The endpoints of Ollama's API."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.chat.endpoint import answering_model, respond
from qwonnx.handlers.chat.request import ChatRequest as NeutralChat
from qwonnx.handlers.chat.text_request import TextRequest
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.http.body import BodyLimits, read_with, received
from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.http.server_info import installed_version
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.ollama import requests
from qwonnx.handlers.ollama.objects import (
    LINES,
    AnswerMessage,
    ChatAnswer,
    Details,
    ModelEntry,
    ModelList,
    ModelPage,
    TextAnswer,
    Version,
)
from qwonnx.handlers.ollama.protocol import ChatRequest, GenerateRequest, ShowRequest
from qwonnx.handlers.ollama.writer import AnswerWriter
from qwonnx.runtime.engine.engine import Engine

_TAG = ":latest"  # that its clients add to a name

_Body = TypeVar("_Body")


async def chat(request: Request) -> Response:
    """POST /api/chat. Without messages it only says that the model is there.

    Raises:
        ServiceError: the request is refused, or the answer failed before anything was sent.
        ClientDisconnect: the client disconnected first.
    """
    asked = await _received(request, ChatRequest)
    neutral = requests.chat(asked)
    engine = await engine_for(request)
    name = _checked(request, asked.model)
    if not neutral.messages:
        message = AnswerMessage("")
        return _json(ChatAnswer(model=name, created_at=_now(), message=message, done=True, done_reason="load"))
    writer = AnswerWriter(name, is_chat=True)
    return await _answered(request, engine, neutral, writer, stream=asked.stream is not False)


async def generate(request: Request) -> Response:
    """POST /api/generate. Without a prompt it only says that the model is there.

    Raises:
        see chat().
    """
    asked = await _received(request, GenerateRequest)
    neutral = requests.text(asked)
    engine = await engine_for(request)
    name = _checked(request, asked.model)
    if not asked.prompt:
        return _json(TextAnswer(model=name, created_at=_now(), response="", done=True, done_reason="load"))
    writer = AnswerWriter(name, is_chat=False)
    stream = asked.stream is not False
    return await _answered(request, engine, neutral, writer, stream=stream)


async def tags(request: Request) -> Response:
    """GET /api/tags and /api/ps: the served model."""
    host: ModelHost = request.app.state.host
    engine = await engine_for(request)
    entries = [_entry(name, engine) for name in host.served_names()]
    return _json(ModelList(entries))


async def show(request: Request) -> Response:
    """POST /api/show.

    Raises:
        ServiceError: 400, 404 or 503.
        ClientDisconnect: the client disconnected first.
    """
    asked = await _received(request, ShowRequest)
    engine = await engine_for(request)
    _checked(request, asked.model or asked.name or "")
    capabilities = ["completion"]
    if engine.chat_template is not None:
        capabilities += ["tools", "thinking"]
    info = {
        "general.architecture": "qwen35",
        "general.name": engine.artifact.manifest.source.checkpoint,
        "qwen35.context_length": engine.max_model_len,
    }
    return _json(ModelPage(Details(), info, capabilities, _now(), ""))


async def version(request: Request) -> Response:
    """GET /api/version."""
    return _json(Version(await asyncio.to_thread(installed_version)))


async def absent(request: Request) -> Response:
    """Pull, create, copy, delete and the like.

    Raises:
        ServiceError: always: 501.
    """
    message = "this server serves one model, which it does not change: export another one and start a server with it"
    raise ServiceError(ErrorKind.INVALID, 501, message, code="not_supported")


async def _answered(
    request: Request, engine: Engine, neutral: NeutralChat | TextRequest, writer: AnswerWriter, *, stream: bool
) -> Response:
    return _as_lines(await respond(request, engine, neutral, writer, stream=stream), stream=stream)


def _as_lines(response: Response, *, stream: bool) -> Response:
    if stream:
        response.headers["content-type"] = LINES
    return response


def _checked(request: Request, name: str) -> str:
    """Check a model's name, with or without a tag.

    Raises:
        ServiceError: 404, it is another one.
    """
    host: ModelHost = request.app.state.host
    plain = name.removesuffix(_TAG)
    answering_model(request, plain if plain in host.accepted_names() else name)
    return name


async def _received(request: Request, kind: type[_Body]) -> _Body:
    limits: BodyLimits = request.app.state.bodies
    async with received(request, limits) as data:
        return await read_with(lambda body: requests.parse(body, kind), data)


def _entry(name: str, engine: Engine) -> ModelEntry:
    size = sum(file.size for file in engine.artifact.manifest.files)
    return ModelEntry(name, name, _now(), size, engine.artifact.id, Details())


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
