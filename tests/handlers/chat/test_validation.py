"""Refusals of documents: the path of the field at fault, and the remedy."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import pytest

from qwonnx.handlers.chat.validation import Strict, of_validation
from qwonnx.handlers.errors import ErrorKind, ServiceError

pytestmark = pytest.mark.fast


class Inner(Strict):
    size: Annotated[int, msgspec.Meta(ge=1)]


class Outer(Strict):
    inner: list[Inner] = []  # noqa: RUF012 - msgspec copies it
    by_number: dict[int, str] | None = None


def refusal(value: Any, **options: str) -> ServiceError:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.json.decode(msgspec.json.encode(value), type=Outer)
    return of_validation(error.value, **options)


@pytest.mark.parametrize(
    ("document", "parameter", "code", "message"),
    [
        ({"wish": 1}, "wish", "unknown_parameter", "unknown parameter wish: remove it"),
        (
            {"inner": [{"size": 1}, {"size": 1, "wish": 1}]},
            "inner[1].wish",
            "unknown_parameter",
            "unknown parameter inner[1].wish: remove it",
        ),
        ({"inner": [{}]}, "inner[0].size", "missing_required_parameter", "inner[0].size is missing: send it"),
        (
            {"inner": [{"size": "x"}]},
            "inner[0].size",
            "invalid_value",
            "inner[0].size is invalid: expected 'int', got 'str'",
        ),
        ({"inner": [{"size": 0}]}, "inner[0].size", "invalid_value", "inner[0].size is invalid: expected 'int' >= 1"),
        ({"by_number": {"x": "y"}}, "by_number", "invalid_value", "by_number is invalid: expected 'int', got 'str'"),
        ([], None, "invalid_value", "the body is invalid: expected 'object', got 'array'"),
    ],
)
def test_a_refusal_names_the_field(document: Any, parameter: str | None, code: str, message: str) -> None:
    error = refusal(document)
    assert (error.kind, error.status) == (ErrorKind.INVALID, 400)
    assert (error.parameter, error.code, error.message) == (parameter, code, message)


def test_a_document_may_be_called_something_else() -> None:
    assert refusal([], document="the prompt").message.startswith("the prompt is invalid: ")
