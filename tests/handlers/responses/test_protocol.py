"""The published schemas: they take what clients send, and what they take is refused for stated reasons only."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings

from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.openapi import document, operations
from qwonnx.handlers.responses import request
from qwonnx.handlers.responses.api import RESPONSES
from qwonnx.handlers.responses.protocol import REFERRED
from tests.handlers.responses.streams import END, whole
from tests.handlers.responses.test_fuzzed_requests import BODY, EXAMPLES, bodies
from tests.handlers.test_recorded_requests import recorded

pytestmark = pytest.mark.fast

_COMPONENTS = document(operations([RESPONSES]), None)["components"]
# What a schema does not say: numbers of things together, names that must differ or be found, text alone.
_STATED = (
    "two tools are named",
    "is not one of the tools",
    "there are no tools",
    "stream_options needs stream",
    "does not have it: send the item itself",
    "refers to the item of an earlier reference",
    "input is empty",
    "send text",
    "which this server does not have",
    "leave it out, or send one of",  # an item that is read as one of its own type
    "is not supported",
)


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": _COMPONENTS})


_REQUEST = validator("ResponsesRequest")


def test_what_schemas_refer_to_has_the_name_by_which_they_do() -> None:
    assert {struct.__name__ for struct in REFERRED} <= _COMPONENTS["schemas"].keys()


def test_recorded_requests_and_answers_are_valid() -> None:
    for requests in recorded().values():
        for each in (one for one in requests if one["path"].startswith("/v1/responses")):
            name = "InputTokensRequest" if each["path"].endswith("input_tokens") else "ResponsesRequest"
            validator(name).validate(each["body"])
    _REQUEST.validate(BODY)
    validator("ResponseObject").validate(whole(END, tools=BODY["tools"]))


@settings(deadline=None, max_examples=EXAMPLES)
@given(bodies())
def test_a_valid_body_is_refused_for_stated_reasons_only(body: Any) -> None:
    if not _REQUEST.is_valid(body):
        return
    try:
        request.understood(json.dumps(body).encode())
    except ServiceError as error:
        told = error.message
    else:
        return
    assert any(reason in told for reason in _STATED), told
