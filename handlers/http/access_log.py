"""The outermost middleware: a request id per answer, a log line per request, and no traceback for clients.

A line has method, path, status, seconds, request id, and the name of the API key; as JSON also tokens and their times.
It does not have the query, headers or content. Metrics and traces get the same facts as a FinishedRequest.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from contextvars import ContextVar
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwonnx.handlers import errors
from qwonnx.handlers.http.api import Apis
from qwonnx.handlers.http.api_key import name_of
from qwonnx.handlers.http.finished_request import Endpoints, FinishedRequest, Observer, method_of, trace_parent_of
from qwonnx.handlers.http.meter import metering
from qwonnx.handlers.settings import LogFormat
from qwonnx.runtime.sampling.entropy import fresh_id

logger = logging.getLogger("qwonnx.access")

REQUEST_ID_HEADER = "x-request-id"
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCOPE = "qwonnx.request_id"
_CURRENT: ContextVar[str] = ContextVar("qwonnx.request_id", default="")
_CLIENT_LEFT = 499  # nginx's status for it; never sent
_MAX_PATH_CHARACTERS = 200


class AccessLog:
    """ASGI middleware.

    Args:
        apis: they render the error after a fault.
        endpoints: of the application, for the observers.
        observers: called with each request that has ended.
        log_format: of the lines.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        apis: Apis,
        endpoints: Endpoints | None = None,
        observers: Sequence[Observer] = (),
        log_format: str = LogFormat.TEXT,
    ) -> None:
        self._app = app
        self._apis = apis
        self._endpoints = endpoints or Endpoints(())
        self._observers = tuple(observers)
        self._format = LogFormat(log_format)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[_SCOPE] = _request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        _CURRENT.set(request_id)
        api = self._apis.owner(scope["path"])
        headers = (
            [REQUEST_ID_HEADER]
            if api is None or api.request_id_header is None
            else [REQUEST_ID_HEADER, api.request_id_header]
        )
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                for name in headers:
                    MutableHeaders(scope=message)[name] = request_id
            await send(message)

        with metering() as meter:
            try:
                await self._app(scope, receive, send_with_id)
            except ClientDisconnect:
                status = _CLIENT_LEFT
            except Exception:
                logger.exception("request %s failed because of a fault in qwonnx", request_id)
                if status is None:
                    answer = self._apis.error_response(scope["path"], errors.internal())
                    await answer(scope, receive, send_with_id)
                else:
                    raise  # an answer that has begun can only be cut off
            finally:
                finished = FinishedRequest(
                    self._endpoints.of(scope),
                    method_of(scope),
                    status,
                    time.perf_counter() - meter.arrived_at,
                    name_of(scope),
                    meter.usage,
                    meter.seconds_to_first_token,
                    meter.seconds_per_token,
                    trace_parent_of(scope),
                )
                # Quoted, so that a path cannot forge a line.
                path = quote(scope["path"])[:_MAX_PATH_CHARACTERS]
                logger.info("%s", self._line(finished, scope["method"], path, request_id))
                for observer in self._observers:
                    observer(finished)

    def _line(self, finished: FinishedRequest, method: str, path: str, request_id: str) -> str:
        if self._format is LogFormat.JSON:
            from qwonnx.handlers.http.log_lines import access_line

            return access_line(finished, method, path, request_id)
        status = str(finished.status or "-")
        words = (method, path, status, f"{finished.seconds:.3f}s", request_id, finished.key_name)
        return " ".join(word for word in words if word)


def request_id_of(scope: Scope) -> str:
    """The id that a request's answer and its log line have."""
    found: str = scope.get(_SCOPE, "")
    return found


def current_request_id() -> str:
    """The id of the request that this task answers; empty outside of one. For errors whose body has it."""
    return _CURRENT.get()


def _request_id(given: str | None) -> str:
    """The client's own id if it is harmless in a log, else a new one."""
    return given if given is not None and _ACCEPTABLE_ID.fullmatch(given) else fresh_id()
