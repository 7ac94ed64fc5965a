"""Untrusted JSON: bounded in size, without duplicate keys, NaN or infinity.

Parsers disagree about duplicate keys, and a checkpoint must have one meaning. Parsed values can be quoted in an error
message and built into dataclasses. Standard library only, because artifacts are opened with this module too.
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

# Three bytes of text ("{},") can take 100 bytes of memory. A valid index of 370,000 tensors (397B, quantised, one
# tensor per expert) has one comma for each; a file header with 120,000 tensors has nine marks for each.
MAX_VALUES = 1 << 21

_MAX_STRING = 1000

_QUOTES = reprlib.Repr()
_QUOTES.maxlevel = 2
_QUOTES.maxdict = _QUOTES.maxlist = 4
_QUOTES.maxstring = _QUOTES.maxlong = 120


class StrictJsonError(Exception):
    """The text is not the expected JSON object. The message is only the reason; the caller completes the sentence."""


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """Parse a file that must hold one object.

    Raises:
        StrictJsonError: longer than max_bytes, unreadable, or not an object; see parse_object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise StrictJsonError(error.strerror or "cannot be read") from error
    if len(content) > max_bytes:
        raise StrictJsonError(f"longer than {max_bytes} bytes")
    return parse_object(content)


def parse_object(content: bytes) -> dict[str, Any]:
    """Parse UTF-8 text that must be one object.

    Raises:
        StrictJsonError: not UTF-8, not JSON, nested too deeply, more than MAX_VALUES values, a duplicate key, NaN or
            infinity, or not an object.
    """
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise StrictJsonError(f"more than {MAX_VALUES} values")
    try:
        document = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise StrictJsonError("nested too deeply") from error
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, a number of too many digits
        raise StrictJsonError(str(error)) from error
    if not isinstance(document, dict):
        raise StrictJsonError("not a JSON object")
    return document


def quoted(value: Any, at_most: int = 120) -> str:
    """A parsed value as one short printable line for an error message, whatever its size or depth."""
    text = _QUOTES.repr(value)
    return text if len(text) <= at_most else f"{text[: at_most - 3]}..."


_T = TypeVar("_T")


def build(kind: type[_T], value: Any, where: str) -> _T:
    """A value of a type from parsed JSON: a dataclass of such types, a tuple, a dict by name, str, int, or a union.

    Args:
        kind: the type.
        value: the parsed JSON.
        where: the value's name in errors.

    Raises:
        StrictJsonError: a field is missing, unknown, or of another type; a string is not a short printable line; a
            number is negative, or does not fit 63 bits.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise StrictJsonError(f"{where} should be an object")
        hints = _hints(kind)
        if value.keys() != hints.keys():
            odd = ", ".join(name if name in hints else quoted(name) for name in sorted(value.keys() ^ hints.keys())[:8])
            raise StrictJsonError(f"{where} has missing or unknown fields ({odd})")
        return kind(**{name: build(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            items = [build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
            return cast(_T, tuple(items))
        if len(arguments) == len(value):
            pairs = zip(arguments, value, strict=True)
            return cast(_T, tuple(build(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(pairs)))
    elif origin is dict and isinstance(value, dict):
        names = (build(str, name, f"a name in {where}") for name in value)
        return cast(_T, {name: build(arguments[1], value[name], f"{where}.{name}") for name in names})
    elif origin not in (tuple, dict) and type(value) in (arguments or (kind,)) and _is_plain(value):
        return cast(_T, value)
    raise StrictJsonError(f"{where} has an unexpected value ({quoted(value)})")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_plain(value: str | int | None) -> bool:
    if isinstance(value, str):
        return len(value) <= _MAX_STRING and value.isprintable()
    return value is None or 0 <= value < 1 << 63


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise StrictJsonError(f"key {quoted(twice)} appears twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise StrictJsonError(f"{name} is not a number in JSON")
