"""GET /v1/models and /v1/models/{model}: the served model."""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.http.held_requests import engine_for
from qwonnx.handlers.model_host import ModelHost


class ModelObject(msgspec.Struct):
    id: str
    created: int  # OpenAI's clients need one; the artifact does not have a date
    max_model_len: int  # tokens of prompt and answer together
    object: Literal["model"] = "model"
    owned_by: str = "qwonnx"


class ModelList(msgspec.Struct):
    data: list[ModelObject]
    object: Literal["list"] = "list"


async def list_models(request: Request) -> Response:
    host: ModelHost = request.app.state.host
    engine = await engine_for(request)
    return _json(ModelList([ModelObject(name, 0, engine.max_model_len) for name in host.model_names()]))


async def retrieve_model(request: Request) -> Response:
    host: ModelHost = request.app.state.host
    name = request.path_params["model"]
    if not name:  # /v1/models/
        return await list_models(request)
    engine = await engine_for(request)
    return _json(ModelObject(host.check_model(name), 0, engine.max_model_len))


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")
