"""Errors in OpenAI's format, byte for byte."""

from __future__ import annotations

import pytest

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.handlers.openai.errors import body, response

pytestmark = pytest.mark.fast


def test_the_body_has_openais_four_fields() -> None:
    answer = response(errors.invalid('top_p is "3"', "top_p"))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    expected = b'{"error":{"message":"top_p is \\"3\\"","type":"invalid_request_error","param":"top_p","code":null}}'
    assert answer.body == expected


@pytest.mark.parametrize("kind", ErrorKind)
def test_every_kind_has_a_type_of_openais(kind: ErrorKind) -> None:
    expected = {
        ErrorKind.BUSY: "rate_limit_error",
        ErrorKind.UNAVAILABLE: "server_error",
        ErrorKind.TIMEOUT: "server_error",
        ErrorKind.INTERNAL: "server_error",
    }.get(kind, "invalid_request_error")
    assert body(ServiceError(kind, 500, "no")).error.type == expected


def test_headers_go_along_and_a_client_is_told_not_to_retry_what_would_fail_again() -> None:
    assert response(errors.closing()).headers["retry-after"] == "1"
    assert "x-should-retry" not in response(errors.closing()).headers
    late = errors.out_of_time()
    assert response(late).headers["x-should-retry"] == "false"
    assert late.headers == {}, "rendering must not change the error"
