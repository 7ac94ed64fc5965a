"""The tokens that a key has used: within the last minute, and beyond its rate.

A bucket alone lets twice its rate through in its first minute, because it begins full. A sliding minute alone forgets a
request that used the tokens of ten minutes. So both count, and the larger one is what is used. Pure arithmetic: the
caller gives the time, in seconds that never go back.
"""

from __future__ import annotations

from collections import deque

MINUTE = 60.0
_PIECE_SECONDS = 0.25


class TokenWindow:
    """At most 241 pieces, however many requests there are."""

    def __init__(self) -> None:
        self._pieces: deque[list[float]] = deque()  # each its end and its tokens, oldest first
        self._total = 0.0

    def charge(self, tokens: int, now: float) -> None:
        """Use tokens now."""
        if tokens <= 0:
            return
        end = (now // _PIECE_SECONDS + 1) * _PIECE_SECONDS
        if self._pieces and self._pieces[-1][0] >= end:
            self._pieces[-1][1] += tokens
        else:
            self._pieces.append([end, tokens])
        self._total += tokens

    def used(self, now: float) -> float:
        """Tokens of the last minute, and of at most a quarter of a second before it."""
        while self._pieces and self._pieces[0][0] + MINUTE <= now:
            self._total -= self._pieces.popleft()[1]
        return self._total

    def seconds_until(self, at_most: float, now: float) -> float:
        """Until no more than so many tokens are within the minute, if none is used; 0 if that is so now."""
        left = self.used(now)
        for end, tokens in self._pieces:
            if left <= at_most:
                return 0.0
            left -= tokens
            if left <= at_most:
                return end + MINUTE - now
        return 0.0


class TokenAccount:
    """What is used of a limit a minute. The limit is given each time, because it may change."""

    def __init__(self) -> None:
        self._window = TokenWindow()
        self._debt = 0.0  # what is not paid for by the time since, at the limit's rate
        self._paid_at = 0.0

    def charge(self, tokens: int, now: float, limit: float) -> None:
        """Use tokens now."""
        if tokens > 0:
            self._pay(now, limit)
            self._debt += tokens
            self._window.charge(tokens, now)

    def used(self, now: float, limit: float) -> float:
        """Tokens of the last minute, or the debt if that is more."""
        self._pay(now, limit)
        return max(self._window.used(now), self._debt)

    def seconds_until(self, at_most: float, now: float, limit: float) -> float:
        """Until no more than so many tokens count as used, if none is used; 0 if that is so now."""
        self._pay(now, limit)
        paying = (self._debt - at_most) * MINUTE / limit
        return max(0.0, paying, self._window.seconds_until(at_most, now))

    def _pay(self, now: float, limit: float) -> None:
        if now > self._paid_at:  # 0 seconds at a limit of infinity are no number
            self._debt = max(0.0, self._debt - (now - self._paid_at) * limit / MINUTE)
            self._paid_at = now
