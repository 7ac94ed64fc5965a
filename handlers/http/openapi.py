"""GET /openapi.json: the OpenAPI 3.1 document of all APIs, made from the types that requests are decoded with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from qwonnx.handlers.http.api import Api
from qwonnx.handlers.http.operation import Operation
from qwonnx.handlers.model_host import ModelHost
from qwonnx.handlers.settings import ServerSettings

_TEMPLATE = "#/components/schemas/{name}"
_HEALTH = (
    Operation("GET", "/health", "Whether the model answers", refusals=(503,)),
    Operation("GET", "/health/live", "Whether the process answers", refusals=()),
    Operation("GET", "/health/ready", "Whether the model answers", refusals=(503,)),
    Operation("GET", "/version", "The installed version", refusals=()),
)
_WORDS = {
    400: "The request cannot be answered as it is; the error names the parameter",
    401: "The API key is missing or wrong",
    404: "The model or the object does not exist",
    408: "The body did not come in time",
    413: "The body is too large",
    415: "The body is not application/json",
    426: "There are no WebSockets here",
    429: "Too many requests wait, or the key has reached a limit",
    500: "A fault of the server",
    503: "The model is not ready",
    504: "The answer did not begin before its deadline",
}


async def openapi(request: Request) -> Response:
    """The document; requests for another model than the served one are not valid by it."""
    host: ModelHost = request.app.state.host
    settings: ServerSettings = request.app.state.settings
    apis: Sequence[Api] = request.app.state.apis
    models = None if settings.any_model_name else host.accepted_names()
    content = await asyncio.to_thread(lambda: msgspec.json.encode(document(operations(apis), models)))
    return Response(content, media_type="application/json")


def operations(apis: Sequence[Api]) -> list[Operation]:
    """The operations of these APIs, and those of the server itself."""
    found = [import_module(api.operations).OPERATIONS for api in apis if api.operations is not None]
    return [*(operation for each in found for operation in each), *_HEALTH]


def document(described: Sequence[Operation], models: Sequence[str] | None) -> dict[str, Any]:
    """The document as JSON values.

    Args:
        described: its operations.
        models: names that requests may give; None allows any.
    """
    types = list(dict.fromkeys(each for operation in described for each in _types(operation)))
    (schemas, components) = msgspec.json.schema_components(types, ref_template=_TEMPLATE)
    by_type = dict(zip(types, schemas, strict=True))
    for operation in described:
        if operation.body is not None:
            properties = _component(by_type[operation.body], components)["properties"]
            if "model" in properties and models is not None:
                properties["model"] = {"enum": [*models, *_optional(properties["model"])]}
    for component in components.values():
        _require_tag(component)
    paths: dict[str, Any] = {}
    for operation in described:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, by_type)
    made = {
        "openapi": "3.1.0",
        "info": {"title": "qwonnx", "version": "1", "description": "Qwen 3.5 on ONNX Runtime."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [{}, {"bearer": []}, {"x-api-key": []}],
    }
    # Types of one name have their modules before it.
    short: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(made).replace(b"qwonnx.handlers.", b""))
    return short


def _types(operation: Operation) -> Iterator[type]:
    found = (operation.body, operation.answer, operation.error, *operation.events, *operation.others)
    yield from (each for each in found if each is not None)


def _component(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = components[schema["$ref"].rpartition("/")[2]]
    return found


def _optional(schema: dict[str, Any]) -> list[None]:
    return [None] if {"type": "null"} in schema.get("anyOf", ()) else []


def _require_tag(component: dict[str, Any]) -> None:
    """A tag has a constant and must be sent; msgspec's schemas do not say so."""
    for name, schema in component.get("properties", {}).items():
        is_tag = name in ("type", "role") and isinstance(schema, dict) and "const" in schema
        if is_tag or (name in ("type", "role") and len(schema.get("enum", ())) == 1 and "default" not in schema):
            component["required"] = sorted({*component.get("required", ()), name})


def _described(operation: Operation, by_type: dict[type, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": by_type.get(operation.answer, {})}}  # type: ignore[arg-type]
    if operation.events:
        events = {"anyOf": [by_type[each] for each in operation.events]}
        content[operation.stream_type] = {"x-event-schema": events}  # of the JSON in each event's data
    error = {"application/json": {"schema": by_type.get(operation.error, {})}}  # type: ignore[arg-type]
    answers: dict[str, Any] = {str(operation.status): {"description": operation.summary, "content": content}}
    for status in (401, *operation.refusals):
        answers[str(status)] = {"description": _WORDS[status], "content": error}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.method.lower() + operation.path.translate(str.maketrans("/", "_", "{}")),
        "responses": answers,
    }
    if operation.body is not None:
        schema = by_type[operation.body]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    if names:
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return described
