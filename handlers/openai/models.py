"""GET /v1/models and /v1/models/{model}: the served model, and its adapters."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.model_host import ModelHost
from qwonnx.runtime.engine.engine import Engine


class ModelObject(msgspec.Struct):
    id: str
    created: int  # OpenAI's clients need one; the artifact does not have a date
    max_model_len: int  # tokens of prompt and answer together
    parent: str | None = None  # of an adapter: the model
    object: Literal["model"] = "model"
    owned_by: str = "qwonnx"


class ModelList(msgspec.Struct):
    data: list[ModelObject]
    object: Literal["list"] = "list"


async def list_models(request: Request) -> Response:
    host: ModelHost = request.app.state.host
    engine = await engine_for(request)
    return _json(ModelList([_model(name, host, engine) for name in host.served_names()]))


async def retrieve_model(request: Request) -> Response:
    host: ModelHost = request.app.state.host
    name = request.path_params["model"]
    if not name:  # /v1/models/
        return await list_models(request)
    engine = await engine_for(request)
    return _json(_model(host.check_model(name), host, engine))


def _model(name: str, host: ModelHost, engine: Engine) -> ModelObject:
    parent = host.model_names()[0] if host.adapter_of(name) else None
    return ModelObject(name, 0, engine.max_model_len, parent)


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
