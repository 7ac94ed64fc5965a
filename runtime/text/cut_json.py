"""The value that a JSON text begins, if the text was cut: an answer may end within the arguments of a call."""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct

_TOKEN = re.compile(
    r"""\s*+(?:(?P<text>"(?:[^"\\]++|\\.)*+")|(?P<open>[\[{])|(?P<close>[\]}])|(?P<mark>[,:])
    |(?P<word>[^\s"\[\]{},:]++))""",
    re.DOTALL | re.VERBOSE,
)
_CUT_ESCAPE = re.compile(r"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)\Z")
_CLOSING = {"{": "}", "[": "]"}


class ClosedJson(Struct, frozen=True):
    """A JSON text that was cut, made whole. num_closing: characters at its end that were added."""

    text: str
    num_closing: int


def object_of(text: str) -> dict[str, Any] | None:
    """The object of a JSON text, or of one that was cut: strings and brackets are closed, keys without values left out.

    Returns:
        None if the text is not the beginning of an object's JSON text.
    """
    try:
        value = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        whole = closed(text)
        try:
            value = None if whole is None else json.loads(whole.text)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def closed(text: str) -> ClosedJson | None:
    """The longest beginning of a JSON text that closing brackets make whole, with them.

    Returns:
        None if the text is not one of an object or array that was cut.
    """
    opened: list[str] = []
    place, whole = 0, 0
    takes_value = True
    while (token := _TOKEN.match(text, place)) is not None:
        kind, written = token.lastgroup, token[token.lastgroup or 0]
        place = token.end()
        if kind == "open":
            opened.append(written)
            takes_value = written == "["
        elif kind == "close":
            if not opened or _CLOSING[opened.pop()] != written:
                return None
            takes_value = False
        elif kind == "mark":
            takes_value = written == ":" or opened[-1:] == ["["]
            continue
        elif kind == "word" and not (takes_value and _is_json(written)):
            if takes_value and place == len(text):
                break  # it was cut
            return None
        elif not takes_value:
            continue  # a key
        whole = place
    rest = text[place:].lstrip()
    if rest.startswith('"') and takes_value and opened:
        rest = text[place:]
        if (escape := _CUT_ESCAPE.search(rest)) is not None:
            rest = rest[: escape.start(1)]
        return ClosedJson(text[:place] + rest + '"' + _brackets(opened), 1 + len(opened))
    # After the last whole part there are only keys, marks and cut words, so the same brackets are open.
    if not opened or (rest and not rest.startswith('"')):
        return None
    return ClosedJson(text[:whole] + _brackets(opened), len(opened))


def _brackets(opened: list[str]) -> str:
    return "".join(_CLOSING[bracket] for bracket in reversed(opened))


def _is_json(word: str) -> bool:
    try:
        json.loads(word)
    except ValueError:
        return False
    return True
