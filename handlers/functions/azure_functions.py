"""Azure Functions: `app` of this file is an AsgiFunctionApp over the server's routes, buffered.

function_app.py is one line, `from qwonnx.handlers.functions.azure_functions import app`. QWONNX_ARTIFACT names the
artifact's folder; the other QWONNX_* variables are the server's. A path may begin with the host's route prefix (/api).
Callers send a function key (x-functions-key), which leaves Authorization for the server's own key.

The worker buffers: `stream: true` gives the whole stream as one body. For streaming run the server as a custom handler
(azure_custom_handler.py). The platform's load balancer gives up after 230 seconds, whatever the function's own limit,
so an answer ends before that, with its text so far.
"""

from __future__ import annotations

import atexit

import azure.functions
from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers.app import create_app, host_from_environment
from qwonnx.handlers.functions.azure_custom_handler import ROUTE_PREFIX
from qwonnx.handlers.functions.extensions import refuse_events
from qwonnx.handlers.http.base_path import BasePath
from qwonnx.handlers.http.deadline import InvocationDeadline
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.settings import ServerSettings

_SECONDS = 230.0 - 4.0  # of an invocation, less the time for the host and the worker to pass it on


class WithoutLifespan:
    """ASGI middleware that answers the adapter's lifespan itself.

    The adapter ends a lifespan from another event loop, at the interpreter's end, where its wait is cancelled and
    prints a traceback. The worker's process ends soon after; so the engine is closed by atexit.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            return
        await self._app(scope, receive, send)


def _application() -> ASGIApp:
    settings = ServerSettings.from_environment()
    host = host_from_environment(settings)
    host.start()  # while the worker indexes its functions; the first requests wait
    atexit.register(host.close)
    routes = create_app(host, settings, Extension(middleware=refuse_events("an HTTP trigger")))
    prefixed = BasePath(routes, base_path_of=lambda scope: ROUTE_PREFIX)
    return WithoutLifespan(InvocationDeadline(prefixed, lambda scope: _SECONDS))


app = azure.functions.AsgiFunctionApp(
    app=_application(), http_auth_level=azure.functions.AuthLevel.FUNCTION, function_name="qwonnx"
)
