"""Amazon SageMaker: `qwonnx serve --platform sagemaker` answers GET /ping and POST /invocations on port 8080.

/invocations takes a conversation as the API does, whole or streamed. SageMaker starts a container with the word
`serve`, so an image whose entry point is `qwonnx` and that sets QWONNX_PLATFORM=sagemaker needs nothing else: the
artifact is what SageMaker unpacks to /opt/ml/model. SageMaker checks who calls, and strips Authorization.

There are no stateful sessions and no adapters: a request that names one is refused, since its answer would be another
one than the caller expects. The other headers of SageMaker (custom attributes, inference id, target variant) change
nothing for the model.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from qwonnx.handlers import errors
from qwonnx.handlers.app import create_app
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.functions.extensions import answer, conversations, refuse_events
from qwonnx.handlers.functions.platform import Platform
from qwonnx.handlers.http import health
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings

_SESSION = "x-amzn-sagemaker-session-id"
_ADAPTER = "x-amzn-sagemaker-adapter-identifier"
_TARGET_MODEL = "x-amzn-sagemaker-target-model"  # of endpoints with several models


def application(host: ModelHost, settings: ServerSettings, platform: Platform) -> ASGIApp:
    """The application with SageMaker's two routes."""
    extension = Extension(
        apis=[conversations("/invocations", _invoke)],
        routes=[Route("/ping", health.ready)],
        middleware=refuse_events("InvokeEndpoint"),
    )
    return create_app(host, settings, extension)


async def _invoke(request: Request) -> Response:
    if _SESSION in request.headers:
        raise errors.invalid("stateful sessions are not enabled: send the whole conversation, without a session id")
    for header in (_ADAPTER, _TARGET_MODEL):
        if name := request.headers.get(header):
            message = f"there is no adapter or model {name!r} here: leave out {header}"
            raise ServiceError(ErrorKind.NOT_FOUND, 404, message, parameter="model", code="model_not_found")
    return await answer(request)
