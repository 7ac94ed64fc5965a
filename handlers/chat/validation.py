"""Checks of documents that clients and users write: unknown fields are refused, a refusal names the field at fault."""

from __future__ import annotations

import re

import msgspec

from qwonnx.handlers import errors
from qwonnx.handlers.errors import ServiceError

# How msgspec ends its messages: at `$.messages[0].content`, or at `key` in `$.logit_bias`.
_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(.*)`$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"^Object contains unknown field `(.*)`$", re.DOTALL)
_MAX_CHARACTERS = 1000
_MISSING_FIELD = re.compile(r"^Object missing required field `(.*)`$", re.DOTALL)


class Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An object of such a document."""


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
