"""AWS Lambda: `qwonnx.handlers.functions.aws_lambda.handler` answers HTTP events of API Gateway (v2) and function URLs.

Routes and answers are those of the server, but buffered: `stream: true` gives the whole stream as one body.
QWONNX_ARTIFACT names the artifact's folder in the image, a layer or a mounted file system; the other QWONNX_* variables
are the server's. Each instance opens and warms up its engine once and keeps it; answers do not depend on each other.

A warm-up event starts the engine and is answered 200: `{"warmer": true}`, an event of a schedule, or of
serverless-plugin-warmup. The stage in front of a path is removed (/prod/v1/models); QWONNX_BASE_PATH names the path of
a custom domain.

An answer ends shortly before its invocation times out (deadline.py). API Gateway closes the connection after 30
seconds, whatever the function's own limit, so set QWONNX_MAX_ANSWER_SECONDS to 29 there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from functools import cache
from typing import Any

from mangum import Mangum
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from qwonnx.handlers import errors
from qwonnx.handlers.app import APIS, create_app, error_response, host_from_environment
from qwonnx.handlers.http.base_path import BasePath
from qwonnx.handlers.http.deadline import InvocationDeadline
from qwonnx.handlers.settings import ServerSettings

logger = logging.getLogger(__name__)

# One invocation at a time: an instance gets one at a time, and the adapter has one event loop.
_LOCK = threading.Lock()
# Sources of events that keep an instance warm: EventBridge's schedules, old and new, and a plugin of serverless.com.
_WARMERS = ("aws.events", "aws.scheduler", "serverless-plugin-warmup")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer one event.

    Args:
        event: an HTTP request in payload format 2.0, which API Gateway and function URLs share, or 1.0.
        context: Lambda's.

    Returns:
        the answer in the event's format.

    Raises:
        SettingsError, ArtifactError, ...: the engine cannot be opened; Lambda reports it and starts another instance.
    """
    with _LOCK:
        adapter = _adapter()
        if _is_warm_up(event):
            return _answer(JSONResponse({"status": "ready"}))
        asyncio.set_event_loop(_event_loop())  # the adapter takes it from here
        try:
            answer: dict[str, Any] = adapter(event, context)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            # The application has answered its own failures, so this event is not an HTTP request.
            logger.warning("refused an event", exc_info=error)
            return _refusal("the event is not an HTTP request of API Gateway or a function URL: check the trigger")
        return answer


@cache
def _adapter() -> Mangum:
    """The application with its engine, which is ready when this returns."""
    settings = ServerSettings.from_environment()
    host = host_from_environment(settings)
    host.wait()
    # The adapter would run the lifespan for every event, and so close the engine after the first one.
    app = InvocationDeadline(BasePath(create_app(host, settings), base_path_of=_stage), _remaining_seconds)
    return Mangum(app, lifespan="off")


def _is_warm_up(event: Any) -> bool:
    """Whether an event only keeps the instance warm. It is never an HTTP request, whose own fields come first."""
    if not isinstance(event, dict) or "requestContext" in event:
        return False
    return bool(event.get("warmer")) or event.get("source") in _WARMERS


def _stage(scope: Scope) -> str:
    """The path of a named stage, which API Gateway leaves in front of the path of a v2 event.

    A stage may have the name of a route (v1), so it is only removed where a route is left.
    """
    event = scope.get("aws.event", {})
    stage = event.get("requestContext", {}).get("stage")
    if event.get("version") != "2.0" or not isinstance(stage, str) or stage in ("", "$default"):
        return ""
    rest = scope["path"].removeprefix(f"/{stage}")
    return f"/{stage}" if rest.startswith((*(f"{api.prefix}/" for api in APIS), "/health/")) else ""


def _remaining_seconds(scope: Scope) -> float | None:
    """Seconds that the invocation has left, from its context."""
    remaining_millis = getattr(scope.get("aws.context"), "get_remaining_time_in_millis", None)
    return None if remaining_millis is None else remaining_millis() / 1000


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _refusal(message: str) -> dict[str, Any]:
    return _answer(error_response(errors.invalid(message, code="invalid_event")))


def _answer(answer: Response) -> dict[str, Any]:
    return {
        "statusCode": answer.status_code,
        "headers": {"content-type": answer.headers["content-type"]},
        "body": bytes(answer.body).decode(),
        "isBase64Encoded": False,
    }


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    # In Lambda, imports run in the initialisation phase. It has more processor time than an invocation and is not part
    # of the first answer's time.
    _adapter()
