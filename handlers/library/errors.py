"""Errors of LLM and AsyncLLM: those of the runtime, and AnswerError for an answer that is not what was asked for."""

from __future__ import annotations

from qwonnx.handlers.errors import ErrorKind, ServiceError
from qwonnx.runtime.errors import (
    EngineClosedError,
    InvalidRequestError,
    QueueFullError,
    QwonnxRuntimeError,
    SessionError,
)

_KINDS: dict[ErrorKind, type[QwonnxRuntimeError]] = {
    ErrorKind.BUSY: QueueFullError,
    ErrorKind.UNAVAILABLE: EngineClosedError,
}


class AnswerError(QwonnxRuntimeError, ValueError):
    """An answer was cut off before it had its form, or has not ended. The message names the remedy."""


def in_python_words(error: ServiceError, where: str = "") -> QwonnxRuntimeError:
    """A refusal or a failure of the layers below, as an error of the runtime.

    Args:
        error: theirs.
        where: of several requests the one at fault, such as "prompts[3]"; empty: there is one.
    """
    message = f"{where}: {error.message}" if where else error.message
    if error.kind is ErrorKind.UNAVAILABLE:
        return EngineClosedError("the model is closed: make a new LLM")
    if error.status < 500 and error.kind not in _KINDS:
        return InvalidRequestError(message, error.parameter, error.code)
    return _KINDS.get(error.kind, SessionError)(message)
