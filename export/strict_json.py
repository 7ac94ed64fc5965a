"""JSON from a stranger: bounded in size, without duplicate keys, without NaN or infinity.

A duplicate key has two meanings, depending on who reads it, and a checkpoint must have one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


class StrictJsonError(Exception):
    """Text that is not the JSON object it should be; the message gives the reason alone, for a caller's sentence."""


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
        StrictJsonError: not UTF-8, not JSON, nested too deeply, a duplicate key, NaN or infinity, or no object.
    """
    try:
        document = json.loads(content.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise StrictJsonError("nested too deeply") from error
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, a number of too many digits
        raise StrictJsonError(str(error)) from error
    if not isinstance(document, dict):
        raise StrictJsonError("not a JSON object")
    return document


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise StrictJsonError(f"key {twice[:80]!r} appears twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise StrictJsonError(f"{name} is not a number JSON has")
