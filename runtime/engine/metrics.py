"""Counters and histograms of an engine. They have no output format; an endpoint chooses one.

One thread counts. Any thread may take a snapshot; its numbers may be one step apart.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING

from msgspec import Struct, field

from qwonnx.runtime.engine.generation import Generation
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.native.expert_memory import ExpertAccount

if TYPE_CHECKING:  # not needed without adapters
    from qwonnx.runtime.adapters.slots import SlotsSnapshot

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_SECONDS_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class HistogramSnapshot(Struct, frozen=True):
    """counts[i] is the number of observations in (bounds[i - 1], bounds[i]]; the last count has no upper bound."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def num_observations(self) -> int:
        return sum(self.counts)


class Histogram:
    """Counts of observations between fixed bounds, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def snapshot(self) -> HistogramSnapshot:
        return HistogramSnapshot(self._bounds, tuple(self._counts), self._total)


class MetricsSnapshot(Struct, frozen=True):
    """Totals since the start of the engine, and its current state.

    Attributes:
        num_waiting, num_running: requests without and with a row.
        max_rows: requests that may run at a time.
        cache_bytes: bytes that the rows in use hold, at most max_cache_bytes.
        prefix_cache_bytes: bytes of kept prefixes, at most max_prefix_cache_bytes.
        finished: requests by finish reason.
        prompt_tokens, cached_tokens: of requests that began; the latter were restored instead of computed.
        generated_tokens: sampled.
        preemptions: rows taken from requests before their end.
        failed_steps: steps that raised.
        experts: those of native kernels in memory, and how often they were read.
        adapters: those in slots, and how often they were loaded; None without slots.
        queue_seconds: from submit() to the first chunk.
        first_token_seconds: from submit() to the first token.
        seconds_per_token: after the first token, the mean of each request that ended.
        between_tokens_seconds: between two tokens of a request, each.
        request_seconds: from submit() to the end.
        compile_seconds: of guides, those that were refused too.
        decoding_rows: rows of each decoding step.
    """

    num_waiting: int
    num_running: int
    max_rows: int
    cache_bytes: int
    max_cache_bytes: int
    prefix_cache_bytes: int
    max_prefix_cache_bytes: int
    finished: dict[FinishReason, int]
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    failed_steps: int
    experts: ExpertAccount
    adapters: SlotsSnapshot | None
    queue_seconds: HistogramSnapshot
    first_token_seconds: HistogramSnapshot
    seconds_per_token: HistogramSnapshot
    between_tokens_seconds: HistogramSnapshot
    request_seconds: HistogramSnapshot
    compile_seconds: HistogramSnapshot
    decoding_rows: HistogramSnapshot


class EngineMetrics(Struct):
    """The totals; see MetricsSnapshot."""

    finished: dict[FinishReason, int] = field(default_factory=lambda: dict.fromkeys(FinishReason, 0))
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    failed_steps: int = 0
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    first_token_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    seconds_per_token: Histogram = field(default_factory=lambda: Histogram(_SECONDS_PER_TOKEN))
    between_tokens_seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS_PER_TOKEN))
    request_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    decoding_rows: Histogram = field(default_factory=lambda: Histogram(_ROWS))

    def count_beginning(self, generation: Generation) -> None:
        """A request begins: its known prefix is restored, and its first chunk is next."""
        self.queue_seconds.observe(time.monotonic() - generation.accepted_at)
        self.prompt_tokens += generation.sequence.num_prompt_tokens
        self.cached_tokens += generation.num_cached_tokens

    def count_token(self, generation: Generation) -> None:
        """A request got a token."""
        self.generated_tokens += 1
        if generation.sequence.num_generated == generation.num_resumed + 1 and generation.first_token_at is not None:
            self.first_token_seconds.observe(generation.first_token_at - generation.accepted_at)
            generation.last_token_at = generation.first_token_at
            return
        now = time.monotonic()
        if generation.last_token_at is not None:
            self.between_tokens_seconds.observe(now - generation.last_token_at)
        generation.last_token_at = now

    def count_end(self, generation: Generation, reason: FinishReason) -> None:
        """A request has ended."""
        self.finished[reason] += 1
        self.request_seconds.observe(time.monotonic() - generation.accepted_at)
        further = generation.sequence.num_generated - generation.num_resumed - 1
        if generation.first_token_at is not None and further > 0:
            self.seconds_per_token.observe((time.monotonic() - generation.first_token_at) / further)

    def snapshot(
        self,
        *,
        num_waiting: int,
        num_running: int,
        max_rows: int,
        cache_bytes: int,
        max_cache_bytes: int,
        prefix_cache_bytes: int,
        max_prefix_cache_bytes: int,
        experts: ExpertAccount,
        adapters: SlotsSnapshot | None,
        compile_seconds: HistogramSnapshot,
    ) -> MetricsSnapshot:
        """The totals, with the state that the caller gives."""
        return MetricsSnapshot(
            num_waiting=num_waiting,
            num_running=num_running,
            max_rows=max_rows,
            cache_bytes=cache_bytes,
            max_cache_bytes=max_cache_bytes,
            prefix_cache_bytes=prefix_cache_bytes,
            max_prefix_cache_bytes=max_prefix_cache_bytes,
            finished=dict(self.finished),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=self.generated_tokens,
            preemptions=self.preemptions,
            failed_steps=self.failed_steps,
            experts=experts,
            adapters=adapters,
            queue_seconds=self.queue_seconds.snapshot(),
            first_token_seconds=self.first_token_seconds.snapshot(),
            seconds_per_token=self.seconds_per_token.snapshot(),
            between_tokens_seconds=self.between_tokens_seconds.snapshot(),
            request_seconds=self.request_seconds.snapshot(),
            compile_seconds=compile_seconds,
            decoding_rows=self.decoding_rows.snapshot(),
        )
