"""create_app: all APIs and health checks as one ASGI application.

An API is a folder with an Api record (http/api.py) and a line in APIS. GET /health/live and /health/ready: health.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from qwonnx.handlers.anthropic.api import ANTHROPIC
from qwonnx.handlers.chat.capsule_store import CapsuleStore
from qwonnx.handlers.chat.continuations import Continuations
from qwonnx.handlers.chat.recent_items import RecentItems
from qwonnx.handlers.chat.restore import RestoreHooks
from qwonnx.handlers.configuration.environment import warnings_about
from qwonnx.handlers.engine_start import open_engine
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http import health
from qwonnx.handlers.http.access_log import AccessLog
from qwonnx.handlers.http.api import Api, Apis, imported
from qwonnx.handlers.http.api_key import RequireApiKey
from qwonnx.handlers.http.api_keys import KeyRing
from qwonnx.handlers.http.base_path import BasePath
from qwonnx.handlers.http.body import BodyLimits
from qwonnx.handlers.http.body_budget import BodyBudget
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.http.finished_request import Endpoints
from qwonnx.handlers.http.request_totals import RequestTotals
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.models.artifact_path import artifact_path
from qwonnx.handlers.ollama.api import OLLAMA
from qwonnx.handlers.openai.api import OPENAI
from qwonnx.handlers.responses.api import RESPONSES
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.settings import RuntimeSettings

if TYPE_CHECKING:
    from qwonnx.handlers.http.otel import Telemetry
    from qwonnx.runtime.engine.engine import Engine

logger = logging.getLogger(__name__)

# The first one also answers for paths that do not belong to an API.
APIS: tuple[Api, ...] = (OPENAI, RESPONSES, ANTHROPIC, OLLAMA)

_HEALTH = ("/health", "/health/live", "/health/ready")
_OPENAPI = "/openapi.json"
_METRICS = "/metrics"
_INFO = "qwonnx.handlers.http.server_info"


def create_app(
    engine: Engine | ModelHost, settings: ServerSettings | None = None, extension: Extension | None = None
) -> Starlette:
    """The application. Its lifespan loads and warms up the engine in the background, and closes it at the end.

    Args:
        engine: an open engine, or a host, which opens one while the application already answers.
        settings: see ServerSettings. A host keeps its own model name.
        extension: what a platform adds.

    Raises:
        SettingsError: the settings' place for capsules or file of keys cannot be used, or a secret for continuations
            has no such place.
    """
    settings = settings or ServerSettings()
    extension = extension or Extension()
    ring = KeyRing(settings)
    host = engine if isinstance(engine, ModelHost) else _host(lambda: engine, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        host.start()
        try:
            with _watching(ring):
                yield
        finally:
            await asyncio.to_thread(host.close)
            if telemetry is not None:
                await asyncio.to_thread(telemetry.close)

    apis = Apis((*APIS, *extension.apis))
    capsules = _capsule_store(settings)
    hooks = RestoreHooks(host, capsules)
    admin = _adapter_admin(settings)
    microvm, microvm_path = _microvm(host, hooks) if settings.microvm_hooks else ((), "")
    added = [*extension.routes, *(route for api in extension.apis for route in api.routes)]
    own = [
        *microvm,
        *admin,
        Route("/", imported(_INFO, "root")),
        Route("/version", imported(_INFO, "version")),
        Route("/health", health.ready),
        Route("/health/live", health.live),
        Route("/health/ready", health.ready),
        Route(_METRICS, imported("qwonnx.handlers.http.metrics", "metrics")),
        Route(_OPENAPI, imported("qwonnx.handlers.http.openapi", "openapi")),
    ]
    routes = [*added, *Apis(APIS).routes, *own]  # a platform may want another answer on a path of an API
    totals = RequestTotals()
    telemetry = _telemetry(settings, host)
    observers = [totals.observe] if telemetry is None else [totals.observe, telemetry.observe]
    base_path = settings.base_path or ""
    log = Middleware(
        AccessLog,
        apis=apis,
        endpoints=Endpoints(routes),
        observers=observers,
        log_format=settings.log_format,
    )
    middleware = [Middleware(BasePath, base_path_of=lambda scope: base_path), log]
    if settings.ui:
        from qwonnx.handlers.http.page import Page  # most servers have none

        middleware.append(Middleware(Page))  # in front of the keys: the page asks for one
    if settings.cors_origins:
        middleware.append(_cors(settings))
    if ring.keys:
        middleware.append(
            Middleware(
                RequireApiKey,
                ring=ring,
                apis=apis,
                open_paths=_open_paths(settings, extension),
                own_keys=[route.path for route in admin],
                open_prefix=microvm_path,
            )
        )
    if ring.keys or settings.max_requests_in_flight is not None:
        from qwonnx.handlers.http.request_limits import RequestLimits  # what a server lacks costs its start nothing

        middleware.append(Middleware(RequestLimits, apis=apis, max_in_flight=settings.max_requests_in_flight))
    middleware.extend(extension.middleware)
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers=apis.exception_handlers(),
        lifespan=lifespan,
    )
    # A redirect would name the host that the client's Host header gives.
    app.router.redirect_slashes = False
    app.state.host = host
    app.state.apis = APIS
    # The ring has the key's digest, and what needs the others has them.
    app.state.settings = dataclasses.replace(settings, api_key=None, admin_key=None, adapters_folder=None)
    app.state.totals = totals
    app.state.bodies = BodyLimits(
        settings.max_body_bytes,
        settings.body_seconds,
        BodyBudget(max(settings.max_bodies_bytes, settings.max_body_bytes)),  # one body always fits
    )
    app.state.capsules = capsules
    app.state.recent_items = RecentItems(settings.recent_items_bytes)
    app.state.continuations = _continuations(settings, capsules)
    return app


def _watching(ring: KeyRing) -> AbstractContextManager[None]:
    """Reads a file of keys again when it is told to."""
    if not ring.can_change:
        return nullcontext()
    from qwonnx.handlers.http.hangup import reloading_on_hangup

    return reloading_on_hangup(ring)


def _telemetry(settings: ServerSettings, host: ModelHost) -> Telemetry | None:
    """
    Raises:
        SettingsError: it is asked for, and not installed.
    """
    if not settings.telemetry and not any(name.startswith("OTEL_EXPORTER_OTLP_") for name in os.environ):
        return None
    from qwonnx.handlers.http.otel import telemetry_of

    return telemetry_of(settings, os.environ, partial(_shown_name, host))


def _shown_name(host: ModelHost) -> str | None:
    """The model's name; None while it loads."""
    try:
        return host.model_names()[0]
    except ServiceError:
        return None


def _cors(settings: ServerSettings) -> Middleware:
    """Answers browsers that ask for a page of another origin; a preflight needs no key."""
    from starlette.middleware.cors import CORSMiddleware  # most servers have none

    limits = [f"x-ratelimit-{kind}-{of}" for kind in ("limit", "remaining", "reset") for of in ("requests", "tokens")]
    return Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after", *limits),
    )


def _microvm(host: ModelHost, hooks: RestoreHooks) -> tuple[Sequence[Route], str]:
    """Routes of a MicroVM's hooks, and the prefix of their paths."""
    from qwonnx.handlers.http.microvm import PREFIX, MicrovmHooks  # most servers have none

    return MicrovmHooks(host, hooks.before_snapshot, hooks.after_restore).routes, PREFIX


def _adapter_admin(settings: ServerSettings) -> Sequence[Route]:
    """Routes that load and unload adapters, if there is a key for them.

    Raises:
        SettingsError: there is a key and no folder, or the other way round.
    """
    if (settings.admin_key is None) != (settings.adapters_folder is None):
        raise SettingsError("admin_key and adapters_folder belong together: give both, or none")
    if settings.admin_key is None or settings.adapters_folder is None:
        return ()
    from qwonnx.handlers.http.adapter_admin import AdapterAdmin  # most servers have none

    return AdapterAdmin(settings.admin_key, Path(settings.adapters_folder)).routes


def _open_paths(settings: ServerSettings, extension: Extension) -> list[str]:
    """Paths that can be read without a key."""
    opened = [*_HEALTH, *(route.path for route in extension.routes)]
    if settings.open_metrics:
        opened.append(_METRICS)
    if settings.open_openapi:
        opened.append(_OPENAPI)
    return opened


def error_response(error: ServiceError, path: str = "") -> Response:
    """An error in the format of a path's API, for code that refuses requests before the application."""
    return Apis(APIS).error_response(path, error)


def _host(
    load: Callable[[], Engine], settings: ServerSettings, on_failure: Callable[[Exception], None] | None = None
) -> ModelHost:
    names, takes_any = settings.model_names, settings.any_model_name
    return ModelHost(load, model_names=names, any_model_name=takes_any, on_failure=on_failure)


def _capsule_store(settings: ServerSettings) -> CapsuleStore | None:
    if settings.capsules is None:
        return None
    return CapsuleStore(settings.capsules, compress=settings.capsule_compression == "zstd")


def _continuations(settings: ServerSettings, store: CapsuleStore | None) -> Continuations | None:
    if settings.continuation_secret is None:
        return None
    if store is None:
        raise SettingsError("continuation_secret needs capsules: name a place for them, or leave it out")
    return Continuations(store, settings.continuation_secret, settings.continuation_seconds)


def host_from_environment(
    settings: ServerSettings, *, on_failure: Callable[[Exception], None] | None = None
) -> ModelHost:
    """A host of the artifact in QWONNX_ARTIFACT, with RuntimeSettings.from_environment().

    The variable has a folder, or the name of a pulled model.

    Args:
        settings: of the application.
        on_failure: see ModelHost.

    Raises:
        SettingsError: a variable is missing or malformed.
    """
    for warning in warnings_about():
        logger.warning("%s", warning)
    folder = os.environ.get("QWONNX_ARTIFACT", "").strip()
    if not folder:
        raise SettingsError("QWONNX_ARTIFACT is not set: give the artifact's folder, or a pulled model's name")
    artifact, runtime = artifact_path(folder), RuntimeSettings.from_environment()
    return _host(lambda: open_engine(artifact, runtime), settings, on_failure)


def from_environment() -> Starlette:
    """The application from QWONNX_* variables, for servers that call a factory:

    `uvicorn --factory qwonnx.handlers.app:from_environment`

    Raises:
        SettingsError: a variable is missing or malformed.
    """
    settings = ServerSettings.from_environment()
    return create_app(host_from_environment(settings), settings)
