"""Google Cloud Run functions: `qwonnx.handlers.functions.google_functions.handler`, streamed.

main.py of the function is one line, `from qwonnx.handlers.functions.google_functions import handler`. It runs under
`functions-framework --target handler --asgi` (FUNCTION_USE_ASGI=true), which answers with the server's routes.
QWONNX_ARTIFACT names the artifact's folder; the other QWONNX_* variables are the server's.

The framework imports this before it forks the process that answers. Threads do not survive a fork, so the model is
loaded in the child, at once; requests wait meanwhile (QWONNX_HOLD_WHILE_LOADING). The framework calls no lifespan of
an application: after SIGTERM a thread ends the answers that take too long, as the server does. A model that cannot be
loaded ends the framework, so that the platform tells of it.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from types import FrameType

import functions_framework.aio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers.app import create_app, host_from_environment
from qwonnx.handlers.functions.extensions import refuse_events
from qwonnx.handlers.functions.platform import ALL_ADDRESSES, check_key, find
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import PlatformName

logger = logging.getLogger(__name__)

_SECONDS_TO_TELL = 1.0
_NEVER_STARTED = 3  # gunicorn, which the framework runs, then ends as well, and does not fork another process

# What the framework's own routing has written into a scope.
_OF_THE_ROUTER = ("app", "endpoint", "path_params", "route", "router")


class Delegated(Response):
    """An answer that an application gives, as it comes.

    Args:
        app: of the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inner = {name: value for name, value in scope.items() if name not in _OF_THE_ROUTER}
        await self._app(inner, receive, send)


class GracefulEnd:
    """Ends a host's answers some time after SIGTERM, as the server does; the framework stops accepting by itself.

    Args:
        host: whose answers end.
        seconds: for answers that run.
    """

    def __init__(self, host: ModelHost, seconds: float) -> None:
        self._host = host
        self._seconds = seconds
        self._is_set = False

    def set(self) -> None:
        """Take over SIGTERM, once; the handler that was there is still called. For the main thread."""
        if self._is_set or threading.current_thread() is not threading.main_thread():
            return
        self._is_set = True
        previous = signal.getsignal(signal.SIGTERM)

        def handle(number: int, frame: FrameType | None) -> None:
            # A thread, because the signal may have interrupted code that holds the host's lock.
            threading.Thread(target=self._end, name="qwonnx-end", daemon=True).start()
            if callable(previous):
                previous(number, frame)

        signal.signal(signal.SIGTERM, handle)

    def _end(self) -> None:
        self._host.begin_close()
        time.sleep(self._seconds)
        self._host.close()


def end_framework(error: Exception) -> None:
    """Say why the model could not be loaded, let waiting requests be told, and end."""
    logger.error("the model could not be loaded: %s", error, exc_info=error)
    time.sleep(_SECONDS_TO_TELL)
    os._exit(_NEVER_STARTED)


_platform = find(PlatformName.CLOUD_RUN, os.environ)
assert _platform is not None
_settings = _platform.settings(os.environ)
check_key(_platform, _settings, ALL_ADDRESSES)
_host = host_from_environment(_settings, on_failure=end_framework)
_app = create_app(_host, _settings, Extension(middleware=refuse_events("an HTTP trigger")))
_end = GracefulEnd(_host, _settings.shutdown_seconds)
os.register_at_fork(after_in_child=_host.start)
atexit.register(_host.close)


@functions_framework.aio.http  # type: ignore[untyped-decorator]
async def handler(request: Request) -> Response:
    """Answer a request, as the framework calls it."""
    _host.start()  # under a framework that has not forked
    _end.set()
    return Delegated(_app)
