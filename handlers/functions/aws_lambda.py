"""AWS Lambda with Amazon's own client for Python: the handler is `qwonnx.handlers.functions.aws_lambda.handler`.

It answers events of function URLs, of API Gateway's HTTP and REST APIs, and of Application Load Balancers
(lambda_events.py). Routes and answers are those of the server, but buffered: `stream: true` gives the whole stream as
one body. lambda_runtime.py streams.

QWONNX_ARTIFACT names the artifact's folder in the image, a layer or a mounted file system; the other QWONNX_* variables
are the server's. Each instance opens and warms up its engine once and keeps it; answers do not depend on each other.

A warm-up event starts the engine and is answered 200: `{"warmer": true}`, an event of a schedule, or of
serverless-plugin-warmup. The stage in front of a path is removed (/prod/v1/models); QWONNX_BASE_PATH names the path of
a custom domain. An event of another service raises UnknownEventError: Lambda reports the invocation as failed, and a
queue keeps its message.

An answer ends shortly before its invocation times out (deadline.py), or before it is larger than the platform carries
(answer_bytes.py). API Gateway closes the connection after 30 seconds, whatever the function's own limit, so set
QWONNX_MAX_ANSWER_SECONDS to 29 there.

Translating these events takes less code than using an adapter for all ASGI applications took: mangum answers malformed
fields by raising, does not know limits, and cannot stream.
"""

from __future__ import annotations

import asyncio
import os
import threading
from functools import cache
from typing import Any

from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.functions.lambda_events import MalformedEventError, read_event
from qwonnx.handlers.functions.lambda_instance import (
    Invocation,
    LambdaInstance,
    document_of,
    is_warm_up,
    malformed,
    refusal,
    warm_answer,
)
from qwonnx.handlers.http.exchange import GivenRequest

# One invocation at a time: an instance gets one at a time, and there is one event loop.
_LOCK = threading.Lock()


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Answer one event.

    Args:
        event: an HTTP request in one of the forms of lambda_events.py.
        context: Lambda's.

    Returns:
        the answer in the event's form.

    Raises:
        UnknownEventError: the event is no HTTP request; Lambda reports the message, which names the trigger.
        SettingsError, ArtifactError, ...: the engine cannot be opened; Lambda reports it.
    """
    with _LOCK:
        return _event_loop().run_until_complete(_answer(_instance(), event, _invocation(context)))


async def _answer(instance: LambdaInstance, event: Any, invocation: Invocation) -> dict[str, Any]:
    if is_warm_up(event):
        await instance.ready(invocation)
        return warm_answer()
    try:
        read = read_event(event)
    except MalformedEventError as error:
        return malformed(error)
    await instance.ready(invocation)
    try:
        request = GivenRequest(read.body())
    except ServiceError as error:
        return document_of(read.answer, refusal(error, read.path))
    return await instance.whole(read, invocation, request)


def _invocation(context: Any) -> Invocation:
    def remaining_seconds() -> float | None:
        remaining_millis = getattr(context, "get_remaining_time_in_millis", None)
        return None if remaining_millis is None else remaining_millis() / 1000

    return Invocation(
        id=str(getattr(context, "aws_request_id", "") or ""),
        remaining_seconds=remaining_seconds,
        function_arn=str(getattr(context, "invoked_function_arn", "") or ""),
    )


@cache
def _instance() -> LambdaInstance:
    """The application with its engine, which is ready when this returns, or loads on."""
    instance = LambdaInstance.from_environment()
    instance.initialize()
    instance.hooks.register()
    return instance


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    # In Lambda, imports run in the initialisation phase. It has more processor time than an invocation and is not part
    # of the first answer's time.
    _instance()
