"""A request that has ended, for what counts and traces requests. It has no content, and no name that a client chose."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct
from starlette.datastructures import Headers
from starlette.routing import BaseRoute
from starlette.types import Scope

from qwonnx.handlers.http.meter import Usage

OTHER = "other"  # what is no route


class FinishedRequest(Struct, frozen=True):
    """One request.

    endpoint: the route, with its parameters as they are declared: /v1/models/{model:path}. OTHER if it has none.
    method: of HTTP; OTHER if it is not a usual one.
    status: of HTTP; 499 if the client left; None if the answer was cut off before a status.
    seconds: from its arrival to the end of its answer.
    key_name: empty without keys.
    usage: its tokens.
    first_token_seconds: from its arrival; None without a token.
    seconds_per_token: mean after the first token; None without one.
    trace_parent: the W3C header of that name, if it is well formed; else empty.
    """

    endpoint: str
    method: str
    status: int | None
    seconds: float
    key_name: str
    usage: Usage
    first_token_seconds: float | None
    seconds_per_token: float | None
    trace_parent: str = ""


Observer = Callable[[FinishedRequest], None]
_TRACE_PARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"))


class Endpoints:
    """The paths of an application's routes, by what answers them.

    Args:
        routes: all.
    """

    def __init__(self, routes: Iterable[BaseRoute]) -> None:
        self._paths: Mapping[Any, str] = {
            route.endpoint: route.path for route in routes if hasattr(route, "endpoint") and hasattr(route, "path")
        }

    def of(self, scope: Scope) -> str:
        """The route of a request that was answered."""
        route = scope.get("route")  # newer versions of Starlette tell
        path: str = getattr(route, "path", None) or self._paths.get(scope.get("endpoint"), OTHER)
        return path


def method_of(scope: Scope) -> str:
    """A method as a label: a client may send any word."""
    method: str = scope["method"]
    return method if method in _METHODS else OTHER


def trace_parent_of(scope: Scope) -> str:
    """The client's span, if it tells one."""
    given = Headers(scope=scope).get("traceparent", "")
    return given if _TRACE_PARENT.fullmatch(given) else ""
