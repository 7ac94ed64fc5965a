"""Events of each form as requests, answers in each form, and events that are malformed in every field."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.functions.lambda_events import (
    AnswerForm,
    EventForm,
    MalformedEventError,
    UnknownEventError,
    answer_document,
    carried_bytes,
    prelude,
    read_event,
)
from tests.handlers.functions.lambda_service import balancer_event, event, rest_event

pytestmark = pytest.mark.fast

FORMS: dict[EventForm, dict[str, Any]] = {
    EventForm.FUNCTION_URL: event("POST", "/v1/x", {"a": 1}, url=True),
    EventForm.HTTP_API: event("POST", "/v1/x", {"a": 1}),
    EventForm.REST_API: rest_event("POST", "/v1/x", {"a": 1}),
    EventForm.LOAD_BALANCER: balancer_event("POST", "/v1/x", {"a": 1}),
}


@pytest.mark.parametrize("form", EventForm)
def test_each_form_is_read_as_the_same_request(form: EventForm) -> None:
    read = read_event(FORMS[form])
    scope = read.scope()
    assert read.form is form
    assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/v1/x", b"")
    assert (b"content-type", b"application/json") in scope["headers"]
    assert scope["scheme"] == "https"
    assert scope["client"][0] == "1.2.3.4"
    assert read.body() == b'{"a": 1}'
    assert all(name == name.lower() for name, _ in scope["headers"])


def test_paths_queries_and_cookies_are_decoded_as_the_form_encodes_them() -> None:
    two = {**event("GET", "/a%20b"), "rawQueryString": "x=%20&y=1", "cookies": ["k=1", "l=2"]}
    scope = read_event(two).scope()
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/a b", b"/a%20b", b"x=%20&y=1")
    assert (b"cookie", b"k=1; l=2") in scope["headers"]
    decoded = {**rest_event("GET", "/a"), "multiValueQueryStringParameters": {"x": ["a b", "c&d"]}}
    assert read_event(decoded).scope()["query_string"] == b"x=a+b&x=c%26d"
    encoded = {**balancer_event("GET", "/a"), "queryStringParameters": {"x": "a%20b"}}
    assert read_event(encoded).scope()["query_string"] == b"x=a%20b"


def test_a_body_is_decoded_and_bounded() -> None:
    encoded = {**FORMS[EventForm.HTTP_API], "body": base64.b64encode(b"\xff\x00").decode(), "isBase64Encoded": True}
    assert read_event(encoded).body() == b"\xff\x00"
    for form, wrong, status in (
        (EventForm.HTTP_API, {"body": "*", "isBase64Encoded": True}, 400),
        (EventForm.HTTP_API, {"body": "YQ", "isBase64Encoded": True}, 400),
        (EventForm.HTTP_API, {"body": "\ud800"}, 400),
        (EventForm.REST_API, {"body": "x" * ((6 << 20) + 1)}, 413),
        (EventForm.LOAD_BALANCER, {"body": "x" * ((1 << 20) + 1)}, 413),
    ):
        with pytest.raises(ServiceError) as refused:
            read_event({**FORMS[form], **wrong}).body()
        assert refused.value.status == status
    assert len(read_event({**FORMS[EventForm.LOAD_BALANCER], "body": "x" * (1 << 20)}).body()) == 1 << 20


@pytest.mark.parametrize(
    ("form", "wrong"),
    [
        (EventForm.HTTP_API, {"rawPath": None}),
        (EventForm.HTTP_API, {"rawPath": ""}),
        (EventForm.HTTP_API, {"rawPath": "v1"}),
        (EventForm.HTTP_API, {"rawPath": "/\ud800"}),
        (EventForm.HTTP_API, {"rawQueryString": 1}),
        (EventForm.HTTP_API, {"headers": []}),
        (EventForm.HTTP_API, {"headers": {"a": None}}),
        (EventForm.HTTP_API, {"cookies": "a"}),
        (EventForm.HTTP_API, {"cookies": [1]}),
        (EventForm.HTTP_API, {"body": {}}),
        (EventForm.REST_API, {"httpMethod": None}),
        (EventForm.REST_API, {"path": 1}),
        (EventForm.REST_API, {"multiValueHeaders": {"a": [1]}}),
        (EventForm.REST_API, {"queryStringParameters": "a=b"}),
        (EventForm.REST_API, {"queryStringParameters": {"a": "\ud800"}}),
        (EventForm.LOAD_BALANCER, {"path": None}),
        (EventForm.LOAD_BALANCER, {"queryStringParameters": {"a": None}}),
    ],
)
def test_a_malformed_field_of_a_known_form_is_refused_in_that_form(form: EventForm, wrong: dict[str, Any]) -> None:
    with pytest.raises(MalformedEventError) as malformed:
        read_event({**FORMS[form], **wrong})
    assert malformed.value.answer.form is form
    assert (malformed.value.refusal.status, malformed.value.refusal.code) == (400, "invalid_event")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(FORMS.values())), st.data())
def test_no_change_of_an_event_raises_another_error(whole: dict[str, Any], data: st.DataObject) -> None:
    changed = {**whole, data.draw(st.sampled_from(sorted(whole))): data.draw(VALUES)}
    if isinstance(context := changed.get("requestContext"), dict):
        context = dict(context)
        context[data.draw(st.sampled_from(sorted(map(str, context)) or ["x"]))] = data.draw(VALUES)
        changed["requestContext"] = context
    with suppress(UnknownEventError, MalformedEventError, ServiceError):
        read = read_event(changed)
        read.scope()
        read.body()


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_no_value_raises_another_error(value: Any) -> None:
    with pytest.raises(UnknownEventError):
        read_event(value)


def test_answers_have_their_forms() -> None:
    headers = [("Content-Type", "application/json"), ("Set-Cookie", "a=1"), ("Connection", "close"), ("X-A", "1")]
    two = answer_document(AnswerForm(EventForm.FUNCTION_URL), 404, headers, "ü".encode())
    assert two == {
        "statusCode": 404,
        "headers": {"content-type": "application/json", "x-a": "1"},
        "cookies": ["a=1"],
        "body": "ü",
        "isBase64Encoded": False,
    }
    lists = answer_document(AnswerForm(EventForm.LOAD_BALANCER, multi_value=True), 413, headers, b"")
    assert lists["statusDescription"].startswith("413 ")
    assert lists["multiValueHeaders"]["set-cookie"] == ["a=1"]
    assert "headers" not in lists
    binary = answer_document(AnswerForm(EventForm.REST_API), 200, [("content-type", "image/png")], b"\xff")
    assert (binary["body"], binary["isBase64Encoded"]) == ("/w==", True)
    assert prelude(AnswerForm(EventForm.REST_API), 200, headers)["headers"]["set-cookie"] == "a=1"
    repeated = prelude(AnswerForm(EventForm.HTTP_API), 200, [("vary", "a"), ("Vary", "b")])
    assert repeated["headers"] == {"vary": "a, b"}


@given(st.text())
def test_the_bytes_of_a_part_are_at_least_those_in_either_clients_document(text: str) -> None:
    part = text.encode("utf-8", "replace")
    for ascii_only in (False, True):
        document = json.dumps({"body": part.decode()}, ensure_ascii=ascii_only)
        assert len(document.encode()) <= len('{"body": ""}') + carried_bytes(part)
