"""Neutral errors: a refusal of the runtime gets a kind and a status."""

from __future__ import annotations

import pytest

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.runtime.errors import EngineClosedError, InvalidRequestError, QueueFullError, TemplateError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("error", "kind", "status", "parameter", "code"),
    [
        (InvalidRequestError("no", "top_p", "out_of_range"), ErrorKind.INVALID, 400, "top_p", "out_of_range"),
        (TemplateError("no"), ErrorKind.INVALID, 400, "messages", None),
        (QueueFullError("no"), ErrorKind.BUSY, 429, None, "queue_full"),
        (EngineClosedError("no"), ErrorKind.UNAVAILABLE, 503, None, "server_closing"),
    ],
)
def test_what_the_runtime_refuses_has_a_kind_and_a_status(
    error: InvalidRequestError | QueueFullError | EngineClosedError,
    kind: ErrorKind,
    status: int,
    parameter: str | None,
    code: str | None,
) -> None:
    told = errors.refused(error)
    assert (told.kind, told.status, told.parameter, told.code) == (kind, status, parameter, code)
    assert told.message == str(told)


def test_what_may_be_sent_again_says_when_and_what_would_fail_again_says_so() -> None:
    again = (errors.refused(QueueFullError("full")), errors.closing(), errors.not_ready("is loading"))
    assert [error.headers for error in again] == [{"retry-after": "1"}] * 3
    assert not any(error.is_final for error in again)
    late = errors.out_of_time()
    assert (late.kind, late.status, late.headers, late.is_final) == (ErrorKind.TIMEOUT, 504, {}, True)


def test_the_runtimes_message_is_kept_and_ours_tell_nothing_of_our_insides() -> None:
    assert errors.refused(InvalidRequestError("top_p is 3: give less")).message == "top_p is 3: give less"
    assert errors.not_ready("is loading").message == "the model is loading"
    fault = errors.internal()
    assert (fault.kind, fault.status, fault.code) == (ErrorKind.INTERNAL, 500, "internal_error")
    assert "x-request-id" in fault.message


def test_a_renamed_error_differs_in_its_parameter_alone() -> None:
    error = ServiceError(
        ErrorKind.BUSY, 429, "no", parameter="prompt", code="c", headers={"retry-after": "9"}, is_final=True
    )
    renamed = error.renamed("messages")
    assert vars(renamed) == {**vars(error), "parameter": "messages"}
    assert error.parameter == "prompt"


def test_headers_are_the_errors_own() -> None:
    given = {"a": "b"}
    error = ServiceError(ErrorKind.INVALID, 400, "no", headers=given)
    error.headers["c"] = "d"
    assert given == {"a": "b"}
