"""The bytes that an answer may have where a platform carries it as a whole, such as a function's 6 MB.

A longer answer ends as if it had reached its token limit, before the platform would refuse all of it.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from starlette.types import Scope

_KEY = "qwonnx.answer_bytes"

# For the head, the answer's frame, its end with the usage, and comments that keep a stream alive.
_RESERVED_BYTES = 64 << 10


class AnswerBytes(Struct, frozen=True):
    """The limit of one answer.

    max_bytes: of the whole document that carries it.
    size_of: bytes that a part of the body takes in that document.
    """

    max_bytes: int
    size_of: Callable[[bytes], int] = len


class AnswerRoom:
    """What is left of a limit while an answer is written."""

    def __init__(self, limit: AnswerBytes) -> None:
        self._size_of = limit.size_of
        self._left = limit.max_bytes - _RESERVED_BYTES

    def takes(self, piece: bytes) -> bool:
        """Whether a piece of the body fits, which it then takes."""
        size = self._size_of(piece)
        if size > self._left:
            return False
        self._left -= size
        return True


def limit(scope: Scope, bound: AnswerBytes) -> None:
    """Limit the answer to a request."""
    scope[_KEY] = bound


def of_request(scope: Scope) -> AnswerBytes | None:
    """The limit of a request's answer; None where it may be sent piece by piece."""
    found: AnswerBytes | None = scope.get(_KEY)
    return found
