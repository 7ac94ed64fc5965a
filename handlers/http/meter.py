"""What one request uses: tokens, and when they came. Limits, logs, metrics and traces read it.

The engine's outputs are the only source, so every API is metered alike: whatever opens an OutputStream while a request
is answered counts for it. The request is found by a context variable, because the layers between do not need it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from msgspec import Struct

from qwonnx.runtime.engine.request import RequestOutput


class Usage(Struct, frozen=True):
    """Tokens of one request: of its prompts, those among them that were found, and those of all its answers."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.generated_tokens


class AnswerMeter:
    """Of one answer. The event loop's thread writes it.

    Args:
        prompt_token_ids: of its prompt.
        num_resumed: tokens of the answer that an earlier request has given.
        counts_prompt: whether no other answer of the request has counted this prompt.
    """

    __slots__ = ("_counts_prompt", "_last", "_num_resumed", "first_at", "last_at", "prompt_token_ids")

    def __init__(self, prompt_token_ids: Sequence[int], num_resumed: int, *, counts_prompt: bool) -> None:
        self.prompt_token_ids = prompt_token_ids
        self.first_at: float | None = None  # time.perf_counter() at the first token
        self.last_at: float | None = None
        self._num_resumed = num_resumed
        self._counts_prompt = counts_prompt
        self._last: RequestOutput | None = None

    def took(self, output: RequestOutput) -> None:
        """Note the newest output; one of several that came together is enough."""
        self._last = output
        if output.num_generated_tokens > self._num_resumed:
            now = time.perf_counter()
            if self.first_at is None:
                self.first_at = now
            self.last_at = now

    @property
    def usage(self) -> Usage:
        output = self._last
        if output is None:
            return Usage()
        generated = max(0, output.num_generated_tokens - self._num_resumed)
        if not self._counts_prompt:
            return Usage(generated_tokens=generated)
        return Usage(output.num_prompt_tokens, output.num_cached_tokens, generated)


class RequestMeter:
    """Of one request, from its arrival."""

    __slots__ = ("_answers", "arrived_at")

    def __init__(self) -> None:
        self.arrived_at = time.perf_counter()
        self._answers: list[AnswerMeter] = []

    def open(self, prompt_token_ids: Sequence[int], num_resumed: int) -> AnswerMeter:
        """The meter of one more answer. Several answers to one prompt count it once."""
        is_new = all(each.prompt_token_ids != prompt_token_ids for each in self._answers)
        meter = AnswerMeter(prompt_token_ids, num_resumed, counts_prompt=is_new)
        self._answers.append(meter)
        return meter

    @property
    def usage(self) -> Usage:
        """Until now."""
        usages = [each.usage for each in self._answers]
        return Usage(
            sum(each.prompt_tokens for each in usages),
            sum(each.cached_tokens for each in usages),
            sum(each.generated_tokens for each in usages),
        )

    @property
    def seconds_to_first_token(self) -> float | None:
        """From the request's arrival; None without a token."""
        first = min((each.first_at for each in self._answers if each.first_at is not None), default=None)
        return None if first is None else first - self.arrived_at

    @property
    def seconds_per_token(self) -> float | None:
        """The mean time of a token after the first of its answer; None without one."""
        seconds = tokens = 0.0
        for each in self._answers:
            if each.first_at is not None and each.last_at is not None:
                seconds += each.last_at - each.first_at
                tokens += max(0, each.usage.generated_tokens - 1)
        return seconds / tokens if tokens else None


_CURRENT: ContextVar[RequestMeter | None] = ContextVar("qwonnx_request_meter", default=None)


@contextmanager
def metering() -> Iterator[RequestMeter]:
    """Meter what is answered in this context."""
    meter = RequestMeter()
    token = _CURRENT.set(meter)
    try:
        yield meter
    finally:
        _CURRENT.reset(token)


def current() -> RequestMeter | None:
    """The meter of the request that is being answered; None outside of one."""
    return _CURRENT.get()


def opened(prompt_token_ids: Sequence[int], num_resumed: int) -> AnswerMeter | None:
    """The meter of one more answer of that request; None outside of one."""
    meter = current()
    return None if meter is None else meter.open(prompt_token_ids, num_resumed)
