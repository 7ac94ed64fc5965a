"""Parts of a body that stay JSON text until their type is known, and errors about them."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from msgspec import Raw

from qwonnx.handlers import errors
from qwonnx.handlers.chat.validation import of_validation
from qwonnx.handlers.errors import ServiceError

_Value = TypeVar("_Value")


def decoded(decoder: msgspec.json.Decoder[_Value], text: Raw, where: str) -> _Value:
    """Decode a part of a body. The body's own decoder has looked at its brackets only.

    Args:
        decoder: of the part's type.
        text: JSON.
        where: the part's place in the body, such as input[0].

    Raises:
        ServiceError: 400, with the field at fault as param.
    """
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise inside(of_validation(error), where) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.invalid(f"{where} is not valid JSON: {error}", where, "invalid_json") from error


def inside(error: ServiceError, where: str) -> ServiceError:
    """An error about a part of a body as an error about the whole of it, where the part is at `where`."""
    if error.parameter is None:
        return errors.invalid(f"{where}: {error.message}", where, error.code)
    parameter = f"{where}.{error.parameter}"
    return errors.invalid(error.message.replace(error.parameter, parameter, 1), parameter, error.code)
