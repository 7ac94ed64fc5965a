"""Checks of documents that clients and users write: unknown fields are refused, a refusal names the field at fault."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ServiceError
from qwonnx.handlers.http.json_size import MAX_VALUES, has_too_many_values

_Body = TypeVar("_Body", bytes, bytearray, bytes | bytearray)
_Decoded = TypeVar("_Decoded")

# How msgspec ends its messages: at `$.messages[0].content`, or at `key` in `$.logit_bias`.
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_MAX_CHARACTERS = 1000
_MISSING_FIELD = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)


class Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An object of such a document."""


def decoded(body: _Body, decode: Callable[[_Body], _Decoded], *, remedy: str = "shorten the conversation") -> _Decoded:
    """The JSON of a request's body as its type. Takes up to 0.2 s for 10 MB.

    Args:
        body: as it came.
        decode: msgspec's, of the type.
        remedy: what to do about a body with too many values.

    Raises:
        ServiceError: 400, with the parameter at fault.
    """
    if has_too_many_values(body):
        raise errors.invalid(f"the body has more than {MAX_VALUES} values: {remedy}")
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        raise of_validation(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.invalid(f"the body is not valid JSON: {error}", code="invalid_json") from error


def check_neutral(request: msgspec.Struct, neutral: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Check that fields which are not supported have a value that changes nothing.

    Args:
        request: what it lacks is not checked.
        neutral: by the field's name, such values besides None, and the remedy for others.

    Raises:
        ServiceError: 400, with the field.
    """
    for name, (values, remedy) in neutral.items():
        value = getattr(request, name, None)
        # Types are compared too, because True == 1.
        if value is None or any(type(value) is type(other) and value == other for other in values):
            continue
        raise errors.invalid(f"{name} is not supported: {remedy}", name, "unsupported_parameter")


def of_validation(error: msgspec.ValidationError, document: str = "the body") -> ServiceError:
    """An error of msgspec as a 400 with the parameter's path, such as messages[0].content.

    Args:
        error: of decoding or converting.
        document: its name in the message, if the error has no path.
    """
    text = str(error)
    if len(text) > _MAX_CHARACTERS:  # it quotes a field's name, which the client chose
        text = text[:_MAX_CHARACTERS] + "..."
    found = _PATH.search(text)
    path = found[1] if found else ""
    message = text[: found.start()] if found else text
    if unknown := _UNKNOWN_FIELD.match(message):
        parameter = f"{path}.{unknown[1]}" if path else unknown[1]
        return errors.invalid(f"unknown parameter {parameter}: remove it", parameter, "unknown_parameter")
    if missing := _MISSING_FIELD.match(message):
        parameter = f"{path}.{missing[1]}" if path else missing[1]
        return errors.invalid(f"{parameter} is missing: send it", parameter, "missing_required_parameter")
    message = message[:1].lower() + message[1:].replace("`", "'")
    return errors.invalid(f"{path or document} is invalid: {message}", path or None, "invalid_value")
