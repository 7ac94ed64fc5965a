from __future__ import annotations

import pytest

from qwonnx.runtime.engine.metrics import Histogram
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.sampling.params import SamplingParams
from tests.runtime.counting_model import FAILING_TEXT, CountingModel
from tests.runtime.engine.engine_driver import GREEDY, TEXT, Received, drive, opened

pytestmark = pytest.mark.fast


def test_a_histogram_counts_up_to_each_bound_inclusive() -> None:
    histogram = Histogram((1.0, 10.0))
    for value in (0.5, 1.0, 1.5, 10.0, 11.0):
        histogram.observe(value)
    seen = histogram.snapshot()
    assert seen.counts == (2, 2, 1)
    assert (seen.num_observations, seen.total) == (5, 24.0)


def test_an_engine_counts_what_it_does(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    with opened(counting_model) as engine:
        for _ in range(2):  # at once, because the second's beginning is then kept
            received = Received()
            engine.submit(prompt, GREEDY, received, snapshot_at=[8])
            drive(engine)
        aborted, failed = Received(), Received()
        engine.submit(prompt, GREEDY, aborted, request_id="a")
        engine.submit(counting_model.tokenizer.encode(FAILING_TEXT), GREEDY, failed)
        assert engine.metrics().num_waiting == 2
        engine.abort("a")
        drive(engine)
        seen = engine.metrics()
    assert seen.finished == {
        FinishReason.LENGTH: 2,
        FinishReason.ABORT: 1,
        FinishReason.ERROR: 1,
        FinishReason.GUIDE: 0,
        FinishReason.STOP: 0,
        FinishReason.DEADLINE: 0,
    }
    assert (seen.prompt_tokens, seen.cached_tokens) == (2 * len(prompt) + 1, 8)
    assert (seen.generated_tokens, seen.failed_steps, seen.preemptions) == (24, 1, 0)
    assert seen.queue_seconds.num_observations == 3
    assert seen.first_token_seconds.num_observations == seen.seconds_per_token.num_observations == 2
    assert seen.decoding_rows.num_observations == seen.decoding_rows.total == 22
    assert (seen.num_waiting, seen.num_running, seen.cache_bytes) == (0, 0, 0)


def test_requests_that_decode_together_are_counted_together(counting_model: CountingModel) -> None:
    with opened(counting_model) as engine:
        for text in ("ab", "cd"):
            engine.submit(
                counting_model.tokenizer.encode(text), SamplingParams(temperature=0, max_tokens=5), Received()
            )
        drive(engine)
        seen = engine.metrics().decoding_rows
    assert seen.total == 8  # four tokens each, after those of their prompts' last chunks
    assert 4 <= seen.num_observations <= 5
