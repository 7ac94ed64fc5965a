"""The optional key, on every path of an API: `Authorization: Bearer KEY`, or a header that the API names.

Health checks do not need a key.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.http.api import Apis


class ApiKey:
    """ASGI middleware.

    Args:
        key: the key that requests must send; it is only compared.
        apis: their paths are protected, and they render the refusal.
    """

    def __init__(self, app: ASGIApp, *, key: str, apis: Apis) -> None:
        self._app = app
        self._key = key.encode()
        self._apis = apis

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        api = self._apis.owner(scope["path"]) if scope["type"] == "http" else None
        if api is not None and not self._is_given(Headers(scope=scope), api.key_headers):
            refusal = ServiceError(
                ErrorKind.UNAUTHENTICATED,
                401,
                "the API key is missing or wrong: send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
            await api.error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_given(self, headers: Headers, key_headers: Sequence[str]) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._matches(key.strip()):  # the case does not matter: RFC 9110, 11.1
            return True
        return any(self._matches(headers.get(name, "")) for name in key_headers)

    def _matches(self, given: str) -> bool:
        # compare_digest takes the same time for every wrong key.
        return hmac.compare_digest(given.encode("latin-1", errors="replace"), self._key)
