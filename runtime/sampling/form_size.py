"""Limits for the size of a form, checked before any work whose cost grows with it.

The check itself stops at the limit: it looks at no more values than are allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from qwonnx.runtime.errors import InvalidRequestError

MAX_GUIDE_BYTES = 256 << 10
MAX_VALUES = 20_000  # objects, lists, keys, texts and numbers
MAX_OPTIONAL = 500  # properties of one object: each may be the next, and the compiler's time grows with their square
MAX_NESTING = 64  # objects and lists within each other; the parser of schemas stops at 128


def check_value(value: Any, param: str) -> None:
    """Check the size of a schema, or of any value from JSON.

    Args:
        value: not known to be small.
        param: the request's parameter, for the message.

    Raises:
        InvalidRequestError: invalid_guide: too many values, characters or optional properties, or nested too deeply.
    """
    num_values = num_characters = 0
    level: list[Any] = [value]  # the values of one depth; level by level, so nothing here recurses
    for depth in range(MAX_NESTING + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                num_characters += len(item)
            elif isinstance(item, int):
                num_characters += item.bit_length() // 3  # about its digits
            elif isinstance(item, (Mapping, list, tuple)):
                if depth == MAX_NESTING:
                    _refuse(param, f"is nested deeper than {MAX_NESTING} levels", "use $defs")
                num_values += len(item)
                if num_values > MAX_VALUES:
                    _refuse(param, f"has more than {MAX_VALUES} values")
                if isinstance(item, Mapping):
                    _check_properties(item, param)
                    num_characters += sum(len(str(key)) for key in item)
                    inner.extend(item.values())
                else:
                    inner.extend(item)
            if num_characters > MAX_GUIDE_BYTES:
                _refuse(param, f"has more than {MAX_GUIDE_BYTES} bytes")
        level = inner


def _check_properties(schema: Mapping[Any, Any], param: str) -> None:
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, Mapping):
        num_required = len(required) if isinstance(required, (list, tuple)) else 0
        if len(properties) - num_required > MAX_OPTIONAL:
            _refuse(param, f"has an object with more than {MAX_OPTIONAL} optional properties", "require some of them")


def check_text(text: str, param: str) -> None:
    """Check the size of a form's text.

    Raises:
        InvalidRequestError: invalid_guide: more than MAX_GUIDE_BYTES bytes, or half a surrogate pair.
    """
    size = len(text)
    if size <= MAX_GUIDE_BYTES:
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            message = f"{param} holds half a surrogate pair: send UTF-8"
            raise InvalidRequestError(message, param, "invalid_guide") from error
    if size > MAX_GUIDE_BYTES:
        _refuse(param, f"has {size} bytes: at most {MAX_GUIDE_BYTES} fit")


def check_texts(texts: Iterable[str], param: str) -> None:
    """Check the size of texts together.

    Raises:
        InvalidRequestError: invalid_guide: too many, or too many characters.
    """
    num_characters = 0
    for number, text in enumerate(texts, 1):
        num_characters += len(text)
        if number > MAX_VALUES:
            _refuse(param, f"has more than {MAX_VALUES} values")
        if num_characters > MAX_GUIDE_BYTES:
            _refuse(param, f"has more than {MAX_GUIDE_BYTES} bytes")


def _refuse(param: str, reason: str, remedy: str = "send a smaller form") -> NoReturn:
    raise InvalidRequestError(f"{param} {reason}: {remedy}", param, "invalid_guide")
