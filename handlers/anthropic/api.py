"""Anthropic's API as an Api record: its paths, its routes and its errors.

POST /v1/messages, /v1/messages/count_tokens    messages.py
"""

from __future__ import annotations

from starlette.routing import Route

from qwonnx.handlers.anthropic import errors
from qwonnx.handlers.http.api import Api, imported

_MESSAGES = "qwonnx.handlers.anthropic.messages"

ANTHROPIC = Api(
    prefix="/v1/messages",
    routes=(
        Route("/v1/messages", imported(_MESSAGES, "create_message"), methods=["POST"]),
        Route("/v1/messages/count_tokens", imported(_MESSAGES, "count_tokens"), methods=["POST"]),
    ),
    error_response=errors.response,
    hint="use /v1/messages or /v1/messages/count_tokens; a base URL ends before /v1",
    key_headers=("x-api-key",),
    request_id_header="request-id",
    operations="qwonnx.handlers.anthropic.operations",
)
