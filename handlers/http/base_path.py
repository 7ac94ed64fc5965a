"""A path in front of all routes, which a gateway or proxy leaves in place: /prod/v1/models is /v1/models.

The path is removed before anything else looks at it, so that keys, limits and routes see the same path.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send


class BasePath:
    """ASGI middleware. A request whose path does not begin with the base path is passed on as it is.

    Args:
        base_path_of: the base path of a scope: begins with a slash and does not end with one; empty without one.
    """

    def __init__(self, app: ASGIApp, *, base_path_of: Callable[[Scope], str]) -> None:
        self._app = app
        self._base_path_of = base_path_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (base := self._base_path_of(scope)):
            path = scope["path"]
            if path == base or path.startswith(base + "/"):
                rest = path[len(base) :] or "/"
                scope = dict(scope, path=rest, raw_path=rest.encode())
        await self._app(scope, receive, send)
