"""A budget of bytes for the bodies of all requests together, so that many large ones cannot fill the memory.

Bytes are counted as they come. A body that finds the budget taken is refused at once: if bodies waited for each other,
each with a part of its own, all of them would wait for ever.
"""

from __future__ import annotations


class BodyBudget:
    """The budget of one application; for its event loop.

    Args:
        max_bytes: of all bodies together.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_taken = 0

    @property
    def num_taken(self) -> int:
        """Bytes that are taken."""
        return self._num_taken

    def take(self, num_bytes: int) -> bool:
        """Take bytes; False if so many are not left."""
        if self._num_taken + num_bytes > self._max_bytes:
            return False
        self._num_taken += num_bytes
        return True

    def give_back(self, num_bytes: int) -> None:
        self._num_taken -= num_bytes
        assert self._num_taken >= 0, "more was given back than taken"
