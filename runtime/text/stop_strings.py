"""Stop strings in streamed text: find the first one, and do not emit a part of it before."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds back text that may be the beginning of a stop string.

    Args:
        stops: the strings; if empty, all text passes at once.
        after: they are looked for after this text, such as the tag that ends the reasoning. Empty: from the beginning.
    """

    def __init__(self, stops: Sequence[str], after: str = "") -> None:
        self._stops = tuple(stops)
        self._after = after  # what has to come first
        self._before = ""  # the end of the text so far, which may be a beginning of that
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
        passed = ""
        if self._after:
            passed, text = self._split(text)
        emitted, stopped = self._searched(text)
        return passed + emitted, stopped

    def _split(self, text: str) -> tuple[str, str]:
        """A piece's text where stop strings do not count, and the rest."""
        seen = self._before + text
        place = seen.find(self._after)
        if place < 0:
            self._before = seen[max(0, len(seen) - len(self._after) + 1) :]
            return text, ""
        num_passed = place + len(self._after) - len(self._before)
        self._after = ""
        return text[:num_passed], text[num_passed:]

    def _searched(self, text: str) -> tuple[str, bool]:
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
