"""/openapi.json: it describes every route, is a document of its kind, and takes what real clients sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from qwonnx.handlers.app import APIS
from qwonnx.handlers.http.openapi import document, operations
from tests.handlers.serving import MODEL, Served

RECORDED = Path(__file__).parents[1] / "data" / "recorded"
# Routes that only say that there is nothing, and those of the server itself that are no JSON API.
ABSENT = ("pull", "push", "create", "copy", "delete", "embed", "embeddings")
UNDESCRIBED = {"/v1/embeddings", "/v1/responses/compact", *(f"/api/{name}" for name in ABSENT)}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document(operations(APIS), None)


def test_every_route_that_answers_is_described(described: dict[str, Any]) -> None:
    routes = {
        route.path.replace(":path", "")
        for api in APIS
        for route in api.routes
        if isinstance(route, Route) and "response_id" not in route.path
    }
    assert routes - UNDESCRIBED <= described["paths"].keys()


def test_its_schemas_are_schemas_and_its_references_lead_somewhere(described: dict[str, Any]) -> None:
    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    text = json.dumps(described)
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert names <= described["components"]["schemas"].keys()
    ids = [each["operationId"] for path in described["paths"].values() for each in path.values()]
    assert len(ids) == len(set(ids))


def test_the_server_gives_it_with_the_names_of_its_model(served: Served) -> None:
    with served.http() as http:
        found = http.get("/openapi.json").json()
    assert found["openapi"] == "3.1.0"
    chat = found["components"]["schemas"]["ChatCompletionRequest"]
    assert chat["properties"]["model"] == {"enum": [MODEL]}
    assert chat["additionalProperties"] is False
    assert set(chat["required"]) == {"model", "messages"}
    assert found == document(operations(APIS), (MODEL,))


def test_what_real_clients_sent_is_valid_by_it(described: dict[str, Any]) -> None:
    num_valid, invalid = 0, set()
    for path in sorted(RECORDED.glob("*.json")):
        for number, request in enumerate(json.loads(path.read_text("utf-8"))):
            operation = described["paths"].get(request["path"], {}).get(request["method"].lower(), {})
            if "requestBody" not in operation:
                continue
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            whole = {**schema, "components": described["components"]}
            if jsonschema.Draft202012Validator(whole).is_valid(request["body"]):
                num_valid += 1
            else:
                invalid.add((path.stem, number))
    assert num_valid >= 175
    assert invalid == {("anthropic-python", 9), ("anthropic-python", 10)}, "threads"
