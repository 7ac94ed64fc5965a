"""Stop strings in streamed text: find the first one, and do not emit a part of it before."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back text that may be the beginning of a stop string.

    Args:
        stops: the strings; if empty, all text passes at once.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None  # the one that ended the text

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece of text.

        Returns:
            The text that is safe to emit, and whether a stop string followed it. The stop string that ends first wins,
            and of those the one that begins first.
        """
        if not self._stops:
            return text, False
        for character in text:
            self._held += character
            ending = [stop for stop in self._stops if self._held.endswith(stop)]
            if ending:
                self.found = max(ending, key=len)
                emitted, self._held = self._held[: -len(self.found)], ""
                return emitted, True
        keep = longest_beginning(self._held, self._stops)
        emitted, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return emitted, False

    def finish(self) -> str:
        """The text that was held back, if the answer ends without a stop string."""
        held, self._held = self._held, ""
        return held


def longest_beginning(text: str, wanted: Sequence[str]) -> int:
    """Length of the longest suffix of text that is a proper prefix of a wanted string."""
    longest = max((len(item) for item in wanted), default=0)
    for length in range(min(len(text), longest - 1), 0, -1):
        suffix = text[-length:]
        if any(len(item) > length and item.startswith(suffix) for item in wanted):
            return length
    return 0
