"""The optional key: `Authorization: Bearer KEY` on everything under /v1. Health checks need none."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers.errors import ApiError

_PROTECTED = "/v1"


class ApiKey:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_protected(scope["path"]) and not self._matches(Headers(scope=scope)):
            refusal = ApiError(
                401,
                "the API key is missing or wrong: send it as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
            await refusal.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    @staticmethod
    def _is_protected(path: str) -> bool:
        return path == _PROTECTED or path.startswith(_PROTECTED + "/")

    def _matches(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = f"{scheme.capitalize()} {key.strip()}"  # the scheme's case does not matter: RFC 9110, 11.1
        # compare_digest takes the same time wherever the two differ.
        return hmac.compare_digest(given.encode("latin-1", errors="replace"), self._expected)
