"""What a platform adds to the application, beside the APIs that it always has."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from starlette.middleware import Middleware
from starlette.routing import Route

from qwonnx.handlers.http.api import Api


class Extension(Struct, frozen=True):
    """Additions of one platform.

    apis: with routes that need the key, and with errors in the platform's form.
    routes: that need no key, such as health checks; their paths have no parameters.
    middleware: around the routes, inside the access log.
    """

    apis: Sequence[Api] = ()
    routes: Sequence[Route] = ()
    middleware: Sequence[Middleware] = ()
