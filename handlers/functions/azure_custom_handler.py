"""Azure Functions, streamed: `qwonnx serve --platform azure` as a custom handler, on FUNCTIONS_CUSTOMHANDLER_PORT.

host.json names the command and sets `enableForwardingHttpRequest` to true; the function has an HTTP trigger with the
route `{*route}`. The functions host checks its keys and forwards requests from the same machine, with its route prefix,
/api by default, in front of the path.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers import errors
from qwonnx.handlers.app import APIS, create_app, error_response
from qwonnx.handlers.functions.extensions import refuse_events
from qwonnx.handlers.functions.platform import Platform
from qwonnx.handlers.http.base_path import BasePath
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings

ROUTE_PREFIX = "/api"
_INVOCATION = "x-azure-functions-invocationid"


def application(host: ModelHost, settings: ServerSettings, platform: Platform) -> ASGIApp:
    """The application behind the functions host."""
    events = [*refuse_events("an HTTP trigger"), Middleware(RefuseInvocations)]
    app = create_app(host, settings, Extension(middleware=events))
    return BasePath(app, base_path_of=lambda scope: ROUTE_PREFIX)


class RefuseInvocations:
    """ASGI middleware: an invocation of another trigger, which the functions host posts to /FUNCTION, is refused."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_ours(scope["path"]) and _INVOCATION in Headers(scope=scope):
            message = (
                "this is an invocation in the functions host's own form: use an HTTP trigger, and set"
                " enableForwardingHttpRequest to true in host.json"
            )
            await error_response(errors.invalid(message, code="invalid_event"), scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_ours(path: str) -> bool:
    return path.startswith("/health/") or any(api.owns(path) for api in APIS)
