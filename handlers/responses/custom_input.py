r"""The input of a custom tool's call, read from the call's arguments as they come.

The model writes `{"input": "..."}`. The text of that string is the input, given as soon as its characters are known.
Arguments of another form are not lost: their JSON text is the input.
"""

from __future__ import annotations

import re

import msgspec

from qwonnx.handlers.responses.tools import CUSTOM_ARGUMENT

_BEGINNING = re.compile(r'\s*\{\s*"' + CUSTOM_ARGUMENT + r'"\s*:\s*"')
_ESCAPED = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # of half a surrogate pair
_PLAIN = re.compile(r'[^"\\]*')


class CustomInput:
    """Reads the arguments of one call. The deltas together are the input.

    Args:
        goes_on: another request has begun the call. What comes is the rest of the string, unless it is an object.
    """

    def __init__(self, *, goes_on: bool = False) -> None:
        self._goes_on = goes_on
        self._waiting = ""  # JSON text that is not decoded yet
        self._in_string = False
        self._ended = False  # the string has
        self._high = ""  # the first half of a surrogate pair
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """The input so far."""
        return "".join(self._texts)

    def push(self, arguments: str) -> str:
        """More of the arguments' JSON text. Returns what it adds to the input."""
        if self._ended:
            return ""
        self._waiting += arguments
        if not self._in_string:
            found = _BEGINNING.match(self._waiting)
            if found is None and not (self._goes_on and self._waiting and not self._waiting.startswith("{")):
                return ""
            self._in_string = True
            self._waiting = self._waiting[found.end() if found else 0 :]
        return self._told(self._decoded())

    def close(self) -> str:
        """The call is complete, or was cut. Returns what this adds to the input."""
        if self._in_string:
            high, self._high = self._high, ""
            return self._told(_REPLACEMENT if high else "")
        return self._told(_other_form(self._waiting))

    def _told(self, text: str) -> str:
        if text:
            self._texts.append(text)
        return text

    def _decoded(self) -> str:
        """Decode the string as far as it is known."""
        decoded: list[str] = []
        place = 0
        while place < len(self._waiting):
            plain = _PLAIN.match(self._waiting, place)
            assert plain is not None, "it may be empty"
            if plain[0]:
                self._add(plain[0], decoded)
                place = plain.end()
                continue
            if self._waiting[place] == '"':
                self._ended = True
                self._add("", decoded)
                place = len(self._waiting)
                break
            escape = self._waiting[place : place + 6]
            length = 6 if escape[1:2] == "u" else 2
            if len(escape) < length:
                break  # the rest of it comes
            if length == 2:
                self._add(_ESCAPED.get(escape[1], escape[1]), decoded)
            else:
                self._add_unit(escape[2:], decoded)
            place += length
        self._waiting = self._waiting[place:]
        return "".join(decoded)

    def _add(self, text: str, decoded: list[str]) -> None:
        if self._high:
            self._high = ""
            decoded.append(_REPLACEMENT)
        decoded.append(text)

    def _add_unit(self, digits: str, decoded: list[str]) -> None:
        """Add one UTF-16 unit, in hexadecimal digits; two make a character beyond the first 65,536."""
        unit = int(digits, 16) if re.fullmatch("[0-9a-fA-F]{4}", digits) else ord(_REPLACEMENT)
        if 0xDC00 <= unit < 0xE000:
            high, self._high = self._high, ""
            decoded.append(chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + unit - 0xDC00) if high else _REPLACEMENT)
        elif 0xD800 <= unit < 0xDC00:
            self._add("", decoded)
            self._high = digits
        else:
            self._add(chr(unit), decoded)


def _other_form(arguments: str) -> str:
    """The input of arguments that do not begin with it; the model may have added others, or none."""
    try:
        value = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    if isinstance(value, dict):
        if isinstance(value.get(CUSTOM_ARGUMENT), str):
            text: str = value[CUSTOM_ARGUMENT]
            return text
        if not value:
            return ""
    return arguments
