"""A path in front of all routes that a gateway, a proxy or an outer application leaves in place: /prod of /prod/v1.

The path is removed before anything else looks at it, so that keys, limits and routes see the same path.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send


class BasePath:
    """ASGI middleware. A request whose path does not begin with the base path is passed on as it is.

    The path of a mount is spent here as well (ASGI's root_path): routes would remove it once more from their path, and
    would then see another one than the keys do.

    Args:
        base_path_of: the base path of a scope: begins with a slash and does not end with one; empty without one.
    """

    def __init__(self, app: ASGIApp, *, base_path_of: Callable[[Scope], str]) -> None:
        self._app = app
        self._base_path_of = base_path_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for base in (mount_path(scope), self._base_path_of(scope)):
                scope = _without(base, scope)
        await self._app(scope, receive, send)


def mount_path(scope: Scope) -> str:
    """Where an outer application has mounted this one, or what a server was told of a proxy."""
    path: str = scope.get("root_path") or ""
    return path.rstrip("/")


def _without(base: str, scope: Scope) -> Scope:
    path = scope["path"]
    if base and (path == base or path.startswith(base + "/")):
        path = path[len(base) :] or "/"
        return dict(scope, path=path, raw_path=path.encode(), root_path="")
    return dict(scope, root_path="") if scope.get("root_path") else scope
