"""An API as the application sees it: the paths that are its own, its routes, and how it writes an error.

Middleware and exception handlers raise or catch errors in no API's words; Apis finds the API that a path belongs to,
whose clients will read the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from qwonnx.handlers.errors import ErrorKind, ServiceError

_MAX_PATH_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Api:
    """One API. handlers/app.py lists those that are served.

    prefix: of its paths, without a slash at its end: /v1 has /v1 and /v1/models, not /v1x. Where prefixes contain one
        another, a path belongs to the longest.
    routes: under the prefix.
    error_response: an error as this API's clients read it, with its status and its headers.
    hint: what there is and what a base URL must be, for those who ask for a route that does not exist.
    key_headers: headers that may hold the key beside `Authorization: Bearer`, in lower case.
    """

    prefix: str
    routes: Sequence[BaseRoute]
    error_response: Callable[[ServiceError], Response]
    hint: str
    key_headers: Sequence[str] = ()

    def owns(self, path: str) -> bool:
        return path == self.prefix or path.startswith(self.prefix + "/")


class Apis:
    """Those of an application.

    Args:
        apis: at least one; the first also answers for paths of none, since a wrong base URL is most likely its
            client's.
    """

    def __init__(self, apis: Sequence[Api]) -> None:
        self._apis = tuple(apis)

    @property
    def routes(self) -> list[BaseRoute]:
        return [route for api in self._apis for route in api.routes]

    def owner(self, path: str) -> Api | None:
        """The API that a path belongs to, None if it is no API's."""
        return max((api for api in self._apis if api.owns(path)), key=lambda api: len(api.prefix), default=None)

    def error_response(self, path: str, error: ServiceError) -> Response:
        """An error as the client of this path reads it."""
        return self._speaker(path).error_response(error)

    def exception_handlers(self) -> dict[Any, Callable[[Request, Exception], Any]]:
        """For Starlette: our errors, and its own of an unknown route or a method that a route does not have."""
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
