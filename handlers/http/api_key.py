"""The optional keys, on every path: `Authorization: Bearer KEY`, or a header that an API names.

Every such header counts on all paths: clients of one API also ask for models, for the root, or for what is shared.

Only health checks, and what a setting opens, need no key.
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.http.api import Apis
from qwonnx.handlers.http.api_keys import ApiKey, KeyRing

_SCOPE = "qwonnx.api_key"


class RequireApiKey:
    """ASGI middleware.

    Args:
        ring: with at least one key; requests must send one of its keys.
        apis: they name further headers, and render the refusal.
        open_paths: that can be read without a key. Other methods on them need one: a platform may give a health check
            the path of an API's route.
        own_keys: paths that ask for a key of their own.
        open_prefix: paths below it need no key, whatever the method; empty: there are none.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        ring: KeyRing,
        apis: Apis,
        open_paths: Collection[str] = (),
        own_keys: Collection[str] = (),
        open_prefix: str = "",
    ) -> None:
        self._app = app
        self._ring = ring
        self._apis = apis
        self._key_headers = apis.key_headers
        self._open_paths = frozenset(open_paths)
        self._own_keys = frozenset(own_keys)
        self._open_prefix = open_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_open(scope):
            key = self._given(Headers(scope=scope))
            if key is None:
                refusal = ServiceError(
                    ErrorKind.UNAUTHENTICATED,
                    401,
                    "the API key is missing or wrong: send it as `Authorization: Bearer KEY`",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
                await self._apis.error_response(scope["path"], refusal)(scope, receive, send)
                return
            scope[_SCOPE] = key
        await self._app(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if self._open_prefix and path.startswith(self._open_prefix + "/"):
            return True
        if path in self._own_keys:
            return True
        return scope["method"] in ("GET", "HEAD") and path in self._open_paths

    def _given(self, headers: Headers) -> ApiKey | None:
        found = None
        for given in (bearer_of(headers), *(headers.get(name, "") for name in self._key_headers)):
            found = self._ring.find(given.encode("latin-1", errors="replace")) or found
        return found


def bearer_of(headers: Headers) -> str:
    """The key of `Authorization: Bearer KEY`; empty without one."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""  # the case does not matter: RFC 9110, 11.1


def key_of(scope: Scope) -> ApiKey | None:
    """A request's key; None without keys, and where none is needed."""
    found: ApiKey | None = scope.get(_SCOPE)
    return found


def owner_of(scope: Scope) -> str:
    """Whose prefixes and capsules a request uses: see Engine.submit()."""
    key = key_of(scope)
    return "" if key is None else key.owner


def name_of(scope: Scope) -> str:
    """The name of a request's key; empty without keys."""
    key = key_of(scope)
    return "" if key is None else key.name
