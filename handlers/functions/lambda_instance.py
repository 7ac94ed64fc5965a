"""One instance of an AWS Lambda function: its application and engine, from QWONNX_* variables.

aws_lambda.py calls it from Amazon's client, lambda_runtime.py from our own. It knows events and answers; it does not
know how they come and go.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope, Send

from qwonnx.handlers.app import APIS, create_app, error_response, host_from_environment
from qwonnx.handlers.chat.restore import RestoreHooks
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.functions import lambda_events
from qwonnx.handlers.functions.lambda_events import AnswerForm, HttpEvent, MalformedEventError, answer_document
from qwonnx.handlers.http import answer_bytes
from qwonnx.handlers.http.access_log import REQUEST_ID_HEADER
from qwonnx.handlers.http.answer_bytes import AnswerBytes
from qwonnx.handlers.http.base_path import BasePath
from qwonnx.handlers.http.deadline import InvocationDeadline
from qwonnx.handlers.http.exchange import GivenRequest, WholeAnswer
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings
from qwonnx.runtime.sampling import entropy

# Sources of events that keep an instance warm: EventBridge's schedules, old and new, and a plugin of serverless.com.
_WARMERS = ("aws.events", "aws.scheduler", "serverless-plugin-warmup")
INITIALIZATION = "AWS_LAMBDA_INITIALIZATION_TYPE"
# An initialisation of 10 seconds, with Python's imports, is repeated with the first invocation. A model that takes
# longer loads on while the first invocation waits. Other kinds of initialisation have minutes.
_INITIALIZATION_SECONDS = 8.0
_MARGIN_SECONDS = 0.5  # before the end of an invocation that waits for the model
_INVOCATION, _EVENT = "qwonnx.lambda.invocation", "qwonnx.lambda.event"


@dataclass(frozen=True, slots=True)
class Invocation:
    """What the platform says about one invocation.

    id: Amazon's request id.
    remaining_seconds: until it times out; None if the platform did not say.
    function_arn: of the function, or empty.
    trace_id: of X-Ray, or empty.
    """

    id: str
    remaining_seconds: Callable[[], float | None]
    function_arn: str = ""
    trace_id: str = ""


class LambdaInstance:
    """The application of one process.

    Args:
        host: of the engine.
        settings: of the application.
    """

    def __init__(self, host: ModelHost, settings: ServerSettings) -> None:
        self.host = host
        self.settings = settings
        # The lifespan is not run: the instance owns the host, and no event ends it.
        app = create_app(host, settings)
        self.hooks = RestoreHooks(host, app.state.capsules)
        self._app = InvocationDeadline(
            BasePath(app, base_path_of=_stage), _remaining_seconds, streams=lambda scope: not _is_whole(scope)
        )

    @classmethod
    def from_environment(cls) -> LambdaInstance:
        """The instance that QWONNX_* variables describe.

        Raises:
            SettingsError: a variable is missing or malformed.
        """
        settings = ServerSettings.from_environment()
        # Whoever waits for the host gets its error, and reports it.
        return cls(host_from_environment(settings, on_failure=lambda error: None), settings)

    def initialize(self) -> None:
        """Load the engine: until it is ready, or as long as an initialisation may last.

        Raises:
            the errors of opening and warming up the engine.
        """
        kind = os.environ.get(INITIALIZATION, "")
        self.host.wait(_INITIALIZATION_SECONDS if kind == "on-demand" else None)

    async def ready(self, invocation: Invocation) -> None:
        """Wait for the engine, at most until the invocation ends; then the application says that it still loads.

        Raises:
            the errors of opening and warming up the engine.
        """
        if self.host.has_loaded:
            return
        remaining = invocation.remaining_seconds()
        seconds = None if remaining is None else max(0.0, remaining - _MARGIN_SECONDS)
        await asyncio.to_thread(self.host.wait, seconds)

    async def whole(self, event: HttpEvent, invocation: Invocation, request: GivenRequest) -> dict[str, Any]:
        """The answer to an event, as the document that carries it.

        Args:
            event: that is answered.
            invocation: it belongs to.
            request: made of the event's body.
        """
        scope = _scope(event, invocation)
        answer_bytes.limit(scope, AnswerBytes(event.form.max_bytes, lambda_events.carried_bytes))
        answer = WholeAnswer()
        await self._app(scope, request.receive, answer.send)
        return document_of(event.answer, answer)

    async def streamed(self, event: HttpEvent, invocation: Invocation, request: GivenRequest, send: Send) -> None:
        """Answer an event piece by piece.

        Args:
            event, invocation, request: see whole().
            send: takes ASGI's messages.
        """
        await self._app(_scope(event, invocation), request.receive, send)


def document_of(to: AnswerForm, answer: WholeAnswer) -> dict[str, Any]:
    """A whole answer as a document.

    An answer that does not send anything is a client's that has left; nobody reads the document then.
    """
    return answer_document(to, answer.status or 499, answer.headers, bytes(answer.body))


def refusal(error: ServiceError, path: str = "") -> WholeAnswer:
    """An error in the format of the path's API."""
    return WholeAnswer.of(error_response(error, path))


def malformed(error: MalformedEventError) -> dict[str, Any]:
    """The answer to an event with a malformed field."""
    return document_of(error.answer, refusal(error.refusal))


def is_warm_up(event: Any) -> bool:
    """Whether an event only keeps the instance warm. It is never an HTTP request, whose own fields come first."""
    if not isinstance(event, dict) or "requestContext" in event:
        return False
    return bool(event.get("warmer")) or event.get("source") in _WARMERS


def warm_answer() -> dict[str, Any]:
    """The answer to an event that keeps the instance warm."""
    answer = JSONResponse({"status": "ready"})
    return {
        "statusCode": 200,
        "headers": {"content-type": "application/json"},
        "body": bytes(answer.body).decode(),
        "isBase64Encoded": False,
    }


def _scope(event: HttpEvent, invocation: Invocation) -> Scope:
    entropy.stir(invocation.id.encode())  # no other copy of a snapshot has this invocation
    scope = event.scope()
    scope[_EVENT] = event
    scope[_INVOCATION] = invocation
    if not event.header(REQUEST_ID_HEADER):
        scope["headers"].append((REQUEST_ID_HEADER.encode(), invocation.id.encode("latin-1", "replace")))
    return scope


def _is_whole(scope: Scope) -> bool:
    return answer_bytes.of_request(scope) is not None


def _stage(scope: Scope) -> str:
    """The path of a named stage, which API Gateway leaves in front of the path of a v2 event.

    A stage may have the name of a route (v1), so it is only removed where a route is left.
    """
    stage = scope[_EVENT].stage
    if not stage:
        return ""
    rest = scope["path"].removeprefix(f"/{stage}")
    return f"/{stage}" if rest.startswith((*(f"{api.prefix}/" for api in APIS), "/health/")) else ""


def _remaining_seconds(scope: Scope) -> float | None:
    invocation: Invocation = scope[_INVOCATION]
    return invocation.remaining_seconds()
