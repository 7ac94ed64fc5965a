"""KServe: `qwonnx serve --platform kserve` serves the artifact in /mnt/models, also by the Open Inference Protocol.

GET  /v2/health/live, /v2/health/ready      health, without a key
GET  /v2                                    the server's name and version
GET  /v2/models/NAME, .../NAME/ready        the model's metadata, and whether it is ready; also .../versions/1
POST /v2/models/NAME/infer                  refused: see below
     /openai/v1/...                         the API, under KServe's path for it

A conversation is not a tensor: `infer` has no place for roles, tools and streams, so it is refused with the route to
use. Errors under /v2 have the protocol's form, `{"error": "..."}`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from qwonnx.handlers import errors
from qwonnx.handlers.app import create_app
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.functions.extensions import refuse_events
from qwonnx.handlers.functions.platform import Platform
from qwonnx.handlers.http.api import Api
from qwonnx.handlers.http.base_path import BasePath
from qwonnx.handlers.http.extension import Extension
from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.model_host import HostStatus, ModelHost
from qwonnx.handlers.settings import ServerSettings

_BASE_PATH = "/openai"
_NO_STORE = {"cache-control": "no-store"}
_VERSION = "1"  # an artifact has no versions, and a client may ask for one
_FOR_CONVERSATIONS = "send conversations to /openai/v1/chat/completions"


def application(host: ModelHost, settings: ServerSettings, platform: Platform) -> ASGIApp:
    """The application with the protocol's routes."""
    routes = [Route("/v2", _server), Route("/v2/", _server)]
    for path in ("/v2/models/{name:path}", f"/v2/models/{{name:path}}/versions/{_VERSION}"):
        routes.insert(0, Route(path, _model))
        routes.insert(0, Route(f"{path}/ready", _model_ready))
        routes.insert(0, Route(f"{path}/infer", _infer, methods=["POST"]))
    extension = Extension(
        apis=[Api(prefix="/v2", routes=routes, error_response=_error_response, hint=_FOR_CONVERSATIONS)],
        routes=[Route("/v2/health/live", _live), Route("/v2/health/ready", _ready)],
        middleware=refuse_events("an InferenceService's own URL"),
    )
    return BasePath(create_app(host, settings, extension), base_path_of=lambda scope: _BASE_PATH)


async def _live(request: Request) -> Response:
    return JSONResponse({"live": True}, headers=_NO_STORE)


async def _ready(request: Request) -> Response:
    """200 after the model has answered a warm-up token, otherwise 503."""
    ready = _is_ready(request)
    return JSONResponse({"ready": ready}, 200 if ready else 503, headers=_NO_STORE)


async def _server(request: Request) -> Response:
    return JSONResponse({"name": "qwonnx", "version": _own_version(), "extensions": []})


async def _model(request: Request) -> Response:
    await engine_for(request)
    return JSONResponse(
        {
            "name": _checked_name(request),
            "versions": [_VERSION],
            "platform": "qwonnx_onnxruntime",
            "inputs": [{"name": "messages", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "message", "datatype": "BYTES", "shape": [1]}],
        }
    )


async def _model_ready(request: Request) -> Response:
    """200 or 503, as the server's readiness: never held, because a probe asks."""
    ready = _is_ready(request)
    name = _checked_name(request) if ready else request.path_params["name"]
    return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503, headers=_NO_STORE)


async def _infer(request: Request) -> Response:
    if _is_ready(request):
        _checked_name(request)
    raise errors.invalid(f"this model answers conversations, not tensors: {_FOR_CONVERSATIONS}", code="not_supported")


def _is_ready(request: Request) -> bool:
    host: ModelHost = request.app.state.host
    return host.status is HostStatus.READY


def _checked_name(request: Request) -> str:
    """The model's name.

    Raises:
        ServiceError: 404, the path has another one.
    """
    host: ModelHost = request.app.state.host
    return host.check_model(request.path_params["name"])


def _error_response(error: ServiceError) -> Response:
    return JSONResponse({"error": error.message}, error.status, error.headers)


@cache
def _own_version() -> str:
    return version("qwonnx")
