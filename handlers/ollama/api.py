"""Ollama's API as an Api record: its paths, its routes and its errors.

POST /api/chat, /api/generate, /api/show
GET  /api/tags, /api/ps, /api/version
"""

from __future__ import annotations

from starlette.routing import Route

from qwonnx.handlers.http.api import Api, imported
from qwonnx.handlers.ollama import errors

_ENDPOINTS = "qwonnx.handlers.ollama.endpoints"
_absent = imported(_ENDPOINTS, "absent")

OLLAMA = Api(
    prefix="/api",
    routes=(
        Route("/api/chat", imported(_ENDPOINTS, "chat"), methods=["POST"]),
        Route("/api/generate", imported(_ENDPOINTS, "generate"), methods=["POST"]),
        Route("/api/tags", imported(_ENDPOINTS, "tags")),
        Route("/api/ps", imported(_ENDPOINTS, "tags")),
        Route("/api/show", imported(_ENDPOINTS, "show"), methods=["POST"]),
        Route("/api/version", imported(_ENDPOINTS, "version")),
        *(
            Route(f"/api/{name}", _absent, methods=["POST", "DELETE"])
            for name in ("pull", "push", "create", "copy", "delete", "embed", "embeddings")
        ),
    ),
    error_response=errors.response,
    hint="use /api/chat, /api/generate, /api/tags or /api/show; other clients find OpenAI's API below /v1",
    operations="qwonnx.handlers.ollama.operations",
)
