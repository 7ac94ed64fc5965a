"""Events of message services that reach an HTTP route by mistake: they are refused with the trigger to check.

Without this, a misdirected subscription would read of an unknown route, again with each delivery.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ServiceError

_HEADERS = {
    "ce-specversion": "a CloudEvent",
    "aeg-event-type": "an event of Azure Event Grid",
    "x-amz-sns-message-type": "a message of Amazon SNS",
    "x-goog-pubsub-message-id": "a message of Google Pub/Sub",
    "x-goog-channel-id": "a notification of Google Cloud Storage",
}
_PUBSUB = "APIs-Google"  # its push subscriptions' user agent


class RefuseEvents:
    """ASGI middleware.

    Args:
        trigger: what should call this server instead: "an HTTP trigger".
        error_response: an error in the format of a path's API.
    """

    def __init__(self, app: ASGIApp, *, trigger: str, error_response: Callable[[ServiceError, str], Response]) -> None:
        self._app = app
        self._trigger = trigger
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _event(Headers(scope=scope)) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        message = f"this is {found}, not a request of an API: check the trigger, and use {self._trigger}"
        refusal = self._error_response(errors.invalid(message, code="invalid_event"), scope["path"])
        await refusal(scope, receive, send)


def _event(headers: Headers) -> str | None:
    """What the headers say that this is, if it is an event."""
    for name, meaning in _HEADERS.items():
        if name in headers:
            return meaning
    if headers.get("content-type", "").lower().startswith("application/cloudevents"):
        return "a CloudEvent"
    return "a message of Google Pub/Sub" if headers.get("user-agent", "").startswith(_PUBSUB) else None
