"""create_app: the endpoints as one ASGI application.

POST /v1/chat/completions    chat_completions.py
GET  /v1/models, /v1/models/{model}    models.py
GET  /health/live, /health/ready       health.py
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.errors import ApiError, answer_api_error, answer_http_exception
from qwonnx.handlers.http import health
from qwonnx.handlers.http.access_log import AccessLog
from qwonnx.handlers.http.api_key import ApiKey
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.openai import chat_completions, models
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.settings import RuntimeSettings


def create_app(engine: Engine | ModelHost, settings: ServerSettings | None = None) -> Starlette:
    """The application. Its lifespan loads and warms up the engine in the background, and closes it in the end.

    Args:
        engine: an open engine; or a host, which opens one while the application answers already.
        settings: see ServerSettings. A host has a model name of its own.

    Raises:
        SettingsError: capsules cannot be kept where the settings say.
    """
    settings = settings or ServerSettings()
    host = engine if isinstance(engine, ModelHost) else ModelHost(lambda: engine, model_name=settings.model_name)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        host.start()
        try:
            yield
        finally:
            await asyncio.to_thread(host.close)

    middleware = [Middleware(AccessLog)]
    if settings.api_key is not None:
        middleware.append(Middleware(ApiKey, key=settings.api_key))
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions.create_chat_completion, methods=["POST"]),
            Route("/v1/models", models.list_models),
            Route("/v1/models/{model:path}", models.retrieve_model),
            Route("/health/live", health.live),
            Route("/health/ready", health.ready),
        ],
        middleware=middleware,
        exception_handlers={ApiError: answer_api_error, HTTPException: answer_http_exception},
        lifespan=lifespan,
    )
    app.state.host = host
    app.state.settings = settings
    app.state.capsules = _capsule_store(settings)
    return app


def _capsule_store(settings: ServerSettings) -> CapsuleStore | None:
    if settings.capsules is None:
        return None
    return CapsuleStore(settings.capsules, compress=settings.capsule_compression == "zstd")


def host_from_environment(settings: ServerSettings) -> ModelHost:
    """A host of the artifact that QWONNX_ARTIFACT names, with RuntimeSettings.from_environment().

    Raises:
        SettingsError: a variable is missing or malformed.
    """
    folder = os.environ.get("QWONNX_ARTIFACT", "").strip()
    if not folder:
        raise SettingsError("QWONNX_ARTIFACT is not set: give the artifact's folder")
    runtime = RuntimeSettings.from_environment()
    return ModelHost(lambda: Engine.open(folder, runtime), model_name=settings.model_name)


def from_environment() -> Starlette:
    """The application as QWONNX_* variables describe it, for servers that want a factory:

    `uvicorn --factory qwonnx.handlers.app:from_environment`

    Raises:
        SettingsError: a variable is missing or malformed.
    """
    settings = ServerSettings.from_environment()
    return create_app(host_from_environment(settings), settings)
