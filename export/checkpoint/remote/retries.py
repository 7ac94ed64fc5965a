"""Tries a request again, after longer and longer waits, when a later try may succeed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_ATTEMPTS = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 20.0  # seconds; waits double


class TransientError(Exception):
    """A request failed, and may succeed later. wait: seconds that the server asks for, None: it does not say."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def with_retries(request: Callable[[], Result], sleep: Callable[[float], None] = time.sleep) -> Result:
    """The result of a request, which is tried again after a TransientError.

    Raises:
        TransientError: the last try failed too.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return request()
        except TransientError as error:
            if attempt == _ATTEMPTS - 1:
                raise
            wait = error.wait if error.wait is not None else _FIRST_WAIT * 2**attempt * random.uniform(0.5, 1.0)
            sleep(min(wait, _LONGEST_WAIT))
    raise AssertionError("the last attempt returns or raises")
