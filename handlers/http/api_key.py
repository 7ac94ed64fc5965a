"""The optional keys, on every path of an API: `Authorization: Bearer KEY`, or a header that the API names.

Health checks do not need a key. The metrics need one, unless a setting opens them.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers.api_keys import ApiKey
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.http.api import Apis

_SCOPE = "qwonnx.api_key"


class RequireApiKey:
    """ASGI middleware.

    Args:
        keys: at least one; requests must send one of them. They are only compared.
        apis: their paths are protected, and they render the refusal.
        others: further paths that are protected.
        open_paths: that can be read without a key even so. Other methods on them need one: a platform may give a
            health check the path of an API's route.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[ApiKey],
        apis: Apis,
        others: Collection[str] = (),
        open_paths: Collection[str] = (),
    ) -> None:
        self._app = app
        self._keys = tuple(keys)
        self._apis = apis
        self._others = frozenset(others)
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_protected = scope["type"] == "http" and not self._is_open(scope)
        api = self._apis.owner(scope["path"]) if is_protected else None
        if api is not None or (is_protected and scope["path"] in self._others):
            key = self._given(Headers(scope=scope), () if api is None else api.key_headers)
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
        return scope["method"] in ("GET", "HEAD") and scope["path"] in self._open_paths

    def _given(self, headers: Headers, key_headers: Sequence[str]) -> ApiKey | None:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        bearer = [key.strip()] if scheme.lower() == "bearer" else []  # the case does not matter: RFC 9110, 11.1
        found = None
        for given in (*bearer, *(headers.get(name, "") for name in key_headers)):
            # All keys are compared, and each takes the same time whatever is wrong.
            for each in self._keys:
                if hmac.compare_digest(given.encode("latin-1", errors="replace"), each.key.encode()):
                    found = each
        return found


def owner_of(scope: Scope) -> str:
    """Whose prefixes and capsules a request uses: see Engine.submit()."""
    key: ApiKey | None = scope.get(_SCOPE)
    return "" if key is None else key.owner


def name_of(scope: Scope) -> str:
    """The name of a request's key; empty without keys."""
    key: ApiKey | None = scope.get(_SCOPE)
    return "" if key is None else key.name
