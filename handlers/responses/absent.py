"""What the API has at OpenAI and not here: stored responses, compaction, and responses over a WebSocket."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.errors import ErrorKind, ServiceError

_MAX_ID_CHARACTERS = 100
_ACTIONS = ("input_tokens", "compact")


async def stored_response(request: Request) -> Response:
    """Read, delete or cancel a response.

    Raises:
        ServiceError: always: 404, or 405 where the id is the name of an action.
    """
    name = request.path_params["response_id"][:_MAX_ID_CHARACTERS]
    if name in _ACTIONS:
        message = f"{request.method} is not allowed on /v1/responses/{name}: use POST"
        raise ServiceError(ErrorKind.INVALID, 405, message, code="method_not_allowed", headers={"allow": "POST"})
    message = f"there is no response {name!r}: this server stores nothing; send the earlier output items in input"
    raise ServiceError(ErrorKind.NOT_FOUND, 404, message, parameter="response_id", code="response_not_found")


async def compaction(request: Request) -> Response:
    """Shorten a conversation.

    Raises:
        ServiceError: always: 404.
    """
    message = "this server does not compact conversations: ask for a summary with /v1/responses"
    raise ServiceError(ErrorKind.NOT_FOUND, 404, message, code="compaction_not_supported")


async def read_responses(request: Request) -> Response:
    """GET /v1/responses, as a client sends it to open a WebSocket.

    Raises:
        ServiceError: always: 426 for an upgrade to a WebSocket, else 405.
    """
    if request.headers.get("upgrade", "").strip().lower() == "websocket":
        message = "responses do not come over a WebSocket here: use POST /v1/responses with stream"
        raise ServiceError(
            ErrorKind.INVALID, 426, message, code="upgrade_not_supported", headers={"upgrade": "HTTP/1.1"}
        )
    message = "GET is not allowed on /v1/responses: use POST"
    raise ServiceError(ErrorKind.INVALID, 405, message, code="method_not_allowed", headers={"allow": "POST"})
