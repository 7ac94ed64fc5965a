"""The chat page at / for browsers, with the setting `ui`: page.html, which is served as it is.

Other clients, which do not ask for HTML, get the route's JSON. The page is the same for all and holds no secret, so it
needs no key; what it asks the server for does.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

_FILE = Path(__file__).with_name("page.html")
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)
_HTML, _JSON = "text/html", "application/json"


class Page:
    """ASGI middleware: answers GET and HEAD of / with the page, if the client prefers HTML to JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._response = page_response()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_root = scope["type"] == "http" and scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
        if is_root and wants_html(Headers(scope=scope).getlist("accept")):
            await self._response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def page_response() -> Response:
    """The page, whose headers allow its own script and style and nothing else of any kind."""
    text = _FILE.read_text(encoding="utf-8")
    headers = {
        "content-security-policy": content_security_policy(text),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
        "vary": "accept",
    }
    return HTMLResponse(text, headers=headers)


def content_security_policy(page: str) -> str:
    """The policy of a page with inline scripts and styles, each named by its sha256.

    Args:
        page: the HTML, with `\\n` between its lines: browsers hash a script after they have replaced other line ends.
    """
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(page):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "img-src data:",  # its icon
            "object-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",  # with no policy to make any: no text can become HTML or a script
            "trusted-types 'none'",
        )
    )


def wants_html(accept: list[str]) -> bool:
    """Whether a client names HTML, and does not prefer JSON.

    Args:
        accept: values of its `Accept` headers.
    """
    qualities: dict[str, float] = {}
    for item in ",".join(accept).split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        qualities[kind] = max(qualities.get(kind, 0.0), _quality(parameters))
    return qualities.get(_HTML, 0.0) > 0 and qualities[_HTML] >= qualities.get(_JSON, 0.0)


def _quality(parameters: list[str]) -> float:
    """RFC 9110, 12.4.2: `q=0` to `q=1`, by default 1; what is no such number counts as 0."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return float(value) if re.fullmatch(r"[01](\.\d{0,3})?", value.strip()) else 0.0
    return 1.0
