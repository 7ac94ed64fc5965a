"""The Responses API as an Api record: its paths, its routes and its errors, which have OpenAI's form.

POST   /v1/responses                              create.py
POST   /v1/responses/input_tokens                 input_tokens.py
GET    /v1/responses, with an upgrade             absent.py, as all that follow
POST   /v1/responses/compact
GET    /v1/responses/{id}, .../input_items
DELETE /v1/responses/{id}
POST   /v1/responses/{id}/cancel
"""

from __future__ import annotations

from starlette.routing import Route

from qwonnx.handlers.http.api import Api, imported
from qwonnx.handlers.openai import errors

_FOLDER = "qwonnx.handlers.responses"
_ABSENT = f"{_FOLDER}.absent"
_COUNT = f"{_FOLDER}.input_tokens"
_stored_response = imported(_ABSENT, "stored_response")

RESPONSES = Api(
    prefix="/v1/responses",
    routes=(
        Route("/v1/responses", imported(f"{_FOLDER}.create", "create_response"), methods=["POST"]),
        Route("/v1/responses", imported(_ABSENT, "read_responses"), methods=["GET"]),
        Route(
            "/v1/responses/input_tokens", imported(f"{_FOLDER}.input_tokens", "count_input_tokens"), methods=["POST"]
        ),
        Route("/v1/responses/compact", imported(_ABSENT, "compaction"), methods=["POST"]),
        Route("/v1/responses/{response_id}", _stored_response, methods=["GET", "DELETE"]),
        Route("/v1/responses/{response_id}/cancel", _stored_response, methods=["POST"]),
        Route("/v1/responses/{response_id}/input_items", _stored_response),
    ),
    error_response=errors.response,
    hint="use POST /v1/responses; a base URL ends in /v1",
    operations="qwonnx.handlers.responses.operations",
)
