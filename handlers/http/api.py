"""An API of the application: its paths, its routes, and the format of its errors.

Middleware and exception handlers use errors that do not depend on an API; Apis finds the API of a path, which renders
the error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from importlib import import_module
from typing import Any

from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from qwonnx.handlers.errors import ErrorKind, ServiceError

_MAX_PATH_CHARACTERS = 200


class Api(Struct, frozen=True):
    """One API. handlers/app.py lists all.

    prefix: of its paths, without a slash at its end: /v1 owns /v1 and /v1/models, not /v1x. A path belongs to the API
        with the longest matching prefix.
    routes: under the prefix, or under none, whose errors are the first API's.
    error_response: renders an error for this API's clients, with its status and its headers.
    hint: the routes and the base URL, for the error about an unknown route.
    key_headers: headers that may contain the key instead of `Authorization: Bearer`, in lower case; on all paths.
    request_id_header: of its clients, beside x-request-id; None without.
    operations: the module whose OPERATIONS describe the routes for /openapi.json; None: they are not described.
    main: the endpoint that answers a conversation, for platforms that have one route for all requests; None without.
    """

    prefix: str
    routes: Sequence[BaseRoute]
    error_response: Callable[[ServiceError], Response]
    hint: str
    key_headers: Sequence[str] = ()
    request_id_header: str | None = None
    operations: str | None = None
    main: Callable[[Request], Awaitable[Response]] | None = None

    def owns(self, path: str) -> bool:
        return path == self.prefix or path.startswith(self.prefix + "/")


def imported(module: str, name: str) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint whose module is imported by its first request: most servers are asked in one API only.

    Args:
        module: its full name.
        name: of the endpoint in it.
    """

    async def endpoint(request: Request) -> Response:
        answer: Awaitable[Response] = getattr(import_module(module), name)(request)
        return await answer

    return endpoint


class Apis:
    """The APIs of an application.

    Args:
        apis: at least one. The first one also answers for paths without an API: most likely, its client has a wrong
            base URL.
    """

    def __init__(self, apis: Sequence[Api]) -> None:
        self._apis = tuple(apis)

    @property
    def routes(self) -> list[BaseRoute]:
        return [route for api in self._apis for route in api.routes]

    @property
    def key_headers(self) -> tuple[str, ...]:
        """Of all APIs, each once."""
        return tuple(dict.fromkeys(name for api in self._apis for name in api.key_headers))

    def owner(self, path: str) -> Api | None:
        """The API of a path, or None."""
        return max((api for api in self._apis if api.owns(path)), key=lambda api: len(api.prefix), default=None)

    def error_response(self, path: str, error: ServiceError) -> Response:
        """An error in the format of this path's API."""
        return self._speaker(path).error_response(error)

    def exception_handlers(self) -> dict[Any, Callable[[Request, Exception], Any]]:
        """Handlers for Starlette: of our errors, and of its own errors about unknown routes and methods."""
        return {ServiceError: self._answer_service_error, HTTPException: self._answer_http_exception}

    def _speaker(self, path: str) -> Api:
        return self.owner(path) or self._apis[0]

    async def _answer_service_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return self.error_response(request.scope["path"], error)

    async def _answer_http_exception(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status, path = error.status_code, request.url.path[:_MAX_PATH_CHARACTERS]
        kind, message, code = ErrorKind.INVALID, error.detail, None
        if status == 404:
            hint = self._speaker(request.scope["path"]).hint
            kind, message, code = ErrorKind.NOT_FOUND, f"no such route: {path}: {hint}", "route_not_found"
        elif status == 405:
            message, code = f"{request.method} is not allowed on {path}", "method_not_allowed"
        told = ServiceError(kind, status, message, code=code, headers=error.headers)
        return self.error_response(request.scope["path"], told)
