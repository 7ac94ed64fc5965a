"""Limits on requests in flight, of all clients together and of each key, and on the tokens a minute of a key.

Only POST requests count: those are the ones that cost something. A request is refused with 429 before its body is read.

Tokens are charged as they are used: the engine's own numbers (meter.py), prompt and answer together. What a request
will use is not known when it comes, so until it has ended it holds a reserve: what the key's last requests used, with
their mean deviation, or what its body's size suggests before there is one. A request is admitted while what is charged
and held is below the limit. So a minute has more than the limit only by what its last requests use beyond the reserve;
that is a debt, and the next request waits until it is paid at the limit's rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwonnx.handlers.errors import RETRY_AFTER_SECONDS, ErrorKind, ServiceError
from qwonnx.handlers.http import meter
from qwonnx.handlers.http.api import Apis
from qwonnx.handlers.http.api_key import key_of
from qwonnx.handlers.http.api_keys import ApiKey
from qwonnx.handlers.http.meter import RequestMeter
from qwonnx.handlers.http.token_window import MINUTE, TokenAccount

_BYTES_OF_A_TOKEN = 4  # of English
_WEIGHT = 0.05  # of the newest request in the mean; of the first ones, as in a plain mean


class KeyAccount:
    """What one key has in flight and has used.

    The caller gives the time, in seconds that never go back, and the key's tokens a minute: math.inf without a limit.
    """

    def __init__(self) -> None:
        self._running: dict[int, _Running] = {}
        self._tokens = TokenAccount()
        self._num_ended = 0  # requests that used tokens
        self._mean = 0.0  # of their tokens
        self._deviation = 0.0

    @property
    def num_running(self) -> int:
        return len(self._running)

    def spent(self, now: float, limit: float) -> float:
        """Tokens of the last minute or the debt, with the reserve of the requests in flight."""
        reserve = 0.0
        for each in self._running.values():
            self._settle(each, now, limit)
            reserve += max(0.0, each.expected - each.charged)
        return self._tokens.used(now, limit) + reserve

    def seconds_until_below(self, limit: int, now: float) -> float:
        """Until a request may come, as far as that can be said; 0 if one may come now."""
        excess = self.spent(now, limit) - limit
        if excess < 0:
            return 0.0
        seconds = self._tokens.seconds_until(max(0.0, self._tokens.used(now, limit) - excess - 1), now, limit)
        return seconds or float(RETRY_AFTER_SECONDS)  # the requests in flight hold the rest

    def seconds_until_unused(self, now: float, limit: float) -> float:
        """Until nothing is charged, if nothing more is used."""
        seconds = self._tokens.seconds_until(0, now, limit)
        return max(seconds, MINUTE) if self._running else seconds

    def begin(self, name: int, used: Callable[[], int], body_bytes: int) -> None:
        """A request is admitted.

        Args:
            name: unique among those in flight.
            used: its tokens until now.
            body_bytes: of its body; 0 if they are not known.
        """
        expected = self._mean + self._deviation if self._num_ended else body_bytes / _BYTES_OF_A_TOKEN
        self._running[name] = _Running(used, expected)

    def end(self, name: int, now: float, limit: float) -> None:
        """It has ended, in whatever way."""
        ended = self._running.pop(name)
        self._settle(ended, now, limit)
        if not ended.charged:  # a request that was refused says nothing about the others
            return
        self._num_ended += 1
        weight = max(_WEIGHT, 1 / self._num_ended)
        self._mean += weight * (ended.charged - self._mean)
        self._deviation += weight * (abs(ended.charged - self._mean) - self._deviation)

    def _settle(self, request: _Running, now: float, limit: float) -> None:
        used = request.used()
        self._tokens.charge(used - request.charged, now, limit)
        request.charged = max(request.charged, used)


@dataclass(slots=True)
class _Running:
    """A request in flight: its tokens until now, how many are expected, and how many are charged."""

    used: Callable[[], int]
    expected: float
    charged: int = 0


class RequestLimits:
    """ASGI middleware, inside RequireApiKey.

    Args:
        apis: they render the refusal.
        max_in_flight: requests of all clients; None: no limit.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        apis: Apis,
        max_in_flight: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._apis = apis
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._num_in_flight = 0
        self._num_admitted = 0
        self._accounts: dict[str, KeyAccount] = {}  # by the key's name: a new secret changes nothing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        key = key_of(scope)
        account = None
        if key is not None and (key.max_requests or key.tokens_per_minute):
            account = self._accounts.setdefault(key.name, KeyAccount())
        refusal = self._refusal(key, account)
        if refusal is not None:
            await self._apis.error_response(scope["path"], refusal)(scope, receive, self._telling(key, account, send))
            return
        self._num_in_flight += 1
        self._num_admitted += 1
        name, has_ended = self._num_admitted, False
        if account is not None:
            account.begin(name, _used_of(meter.current()), _body_bytes(scope))

        def end() -> None:
            nonlocal has_ended
            if has_ended:
                return
            has_ended = True
            self._num_in_flight -= 1
            if account is not None:
                account.end(name, self._clock(), (key and key.tokens_per_minute) or math.inf)

        async def send_until_end(message: Message) -> None:
            # A client that has its answer may ask again at once, while a state is still stored.
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                end()
            await send(message)

        try:
            await self._app(scope, receive, self._telling(key, account, send_until_end))
        finally:
            end()

    def _refusal(self, key: ApiKey | None, account: KeyAccount | None) -> ServiceError | None:
        if self._max_in_flight is not None and self._num_in_flight >= self._max_in_flight:
            message = f"{self._max_in_flight} requests are being answered, which is the limit: try again later"
            return _too_many(message, "server_busy", RETRY_AFTER_SECONDS)
        if key is None or account is None:
            return None
        if key.max_requests is not None and account.num_running >= key.max_requests:
            message = f"{key.max_requests} requests of this key are being answered, which is its limit: wait for one"
            return _too_many(message, "rate_limit_exceeded", RETRY_AFTER_SECONDS)
        if key.tokens_per_minute is not None:
            seconds = account.seconds_until_below(key.tokens_per_minute, self._clock())
            if seconds > 0:
                message = f"this key may use {key.tokens_per_minute} tokens a minute, and has: try again later"
                return _too_many(message, "rate_limit_exceeded", seconds)
        return None

    def _telling(self, key: ApiKey | None, account: KeyAccount | None, send: Send) -> Send:
        """Send, with the headers of the key's limits."""
        if key is None or account is None:
            return send

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_headers(key, account, self._clock()))
            await send(message)

        return send_with_limits


def _headers(key: ApiKey, account: KeyAccount, now: float) -> dict[str, str]:
    """Under the names that clients know. `requests` are those in flight: a place is free when one of them ends."""
    headers = {}
    if key.max_requests is not None:
        headers["x-ratelimit-limit-requests"] = str(key.max_requests)
        headers["x-ratelimit-remaining-requests"] = str(max(0, key.max_requests - account.num_running))
        headers["x-ratelimit-reset-requests"] = _duration(RETRY_AFTER_SECONDS if account.num_running else 0)
    if key.tokens_per_minute is not None:
        left = max(0, math.floor(key.tokens_per_minute - account.spent(now, key.tokens_per_minute)))
        headers["x-ratelimit-limit-tokens"] = str(key.tokens_per_minute)
        headers["x-ratelimit-remaining-tokens"] = str(left)
        headers["x-ratelimit-reset-tokens"] = _duration(account.seconds_until_unused(now, key.tokens_per_minute))
    return headers


def _duration(seconds: float) -> str:
    """As clients read it: 1m2s, 4s, 120ms."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    whole = math.ceil(milliseconds / 1000)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"


def _too_many(message: str, code: str, seconds: float) -> ServiceError:
    headers = {"retry-after": str(math.ceil(seconds))}
    return ServiceError(ErrorKind.BUSY, 429, message, code=code, headers=headers)


def _used_of(request: RequestMeter | None) -> Callable[[], int]:
    return (lambda: 0) if request is None else lambda: request.usage.total_tokens


def _body_bytes(scope: Scope) -> int:
    declared = Headers(scope=scope).get("content-length", "")
    return int(declared[:12]) if declared.isascii() and declared.isdecimal() else 0
