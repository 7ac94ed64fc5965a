"""Answers that go on in another engine: cut at each token, they are the answer of one engine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams
from tests.runtime.counting_model import CountingModel
from tests.runtime.engine.engine_driver import GREEDY, SMALL, TEXT, Received, drive, opened

pytestmark = pytest.mark.fast

PARAMS = [
    GREEDY,
    SamplingParams(seed=3, temperature=50.0, max_tokens=12),
    SamplingParams(seed=3, temperature=50.0, max_tokens=12, top_k=9, frequency_penalty=1.5, repetition_penalty=2.0),
    SamplingParams(temperature=0, max_tokens=12, guide=Guide.regex("[a-f]{20}")),
]


@pytest.mark.parametrize("params", PARAMS, ids=["greedy", "sampled", "penalties", "guide"])
def test_an_answer_that_is_cut_goes_on_alike(counting_model: CountingModel, params: SamplingParams) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    with opened(counting_model) as first, opened(counting_model) as second:
        whole = Received()
        first.submit(prompt, params, whole)
        drive(first)
        for cut in range(1, 12):
            begun, rest = Received(), Received()
            name = first.submit(prompt, params, begun)
            while len(begun.tokens) < cut:
                first.step()
                assert first.check() == []
            first.abort(name, keep=True)
            drive(first)
            assert begun.reason is FinishReason.ABORT
            assert begun.tokens == whole.tokens[:cut]
            known = [*prompt, *begun.tokens[:-1]]
            assert first.kept_tokens(known) == len(known)
            capsule = first.save_capsule(known)
            assert capsule is not None
            assert second.load_capsule(capsule) == len(known)
            steps = second.metrics().prompt_tokens
            second.submit(prompt, params, rest, generated=begun.tokens)
            drive(second)
            assert begun.tokens + rest.tokens == whole.tokens
            assert rest.outputs[-1].num_generated_tokens == 12
            assert rest.outputs[0].num_cached_tokens == second.metrics().prompt_tokens - steps == len(prompt)
            assert rest.reason is whole.reason


def test_without_a_kept_state_the_tokens_are_read_again(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    answer = counting_model.answer(prompt, 12)
    with opened(counting_model, replace(SMALL, prefix_cache_bytes=0)) as engine:
        received = Received()
        engine.submit(prompt, GREEDY, received, generated=answer[:5])
        drive(engine)
    assert received.tokens == answer[5:]
    assert received.outputs[0].num_cached_tokens == 0


def test_an_answer_goes_on_although_its_row_is_taken_meanwhile(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    answer = counting_model.answer(prompt, 12)
    with opened(counting_model) as engine:
        received = Received()
        engine.submit(prompt, GREEDY, received, generated=answer[:5])
        while len(received.tokens) < 3:
            engine.step()
        (generation,) = engine._generations.values()
        engine._preempt(generation)
        assert engine.check() == []
        drive(engine)
    assert received.tokens == answer[5:]


@pytest.mark.parametrize(
    ("generated", "params"),
    [
        ([10**6], GREEDY),
        ([5] * 12, GREEDY),
        ([5], replace(GREEDY, guide=Guide.regex("é"))),
    ],
    ids=["unknown", "too-many", "against-the-guide"],
)
def test_what_cannot_go_on_is_refused(
    counting_model: CountingModel, generated: list[int], params: SamplingParams
) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    with opened(counting_model) as engine:
        with pytest.raises(InvalidRequestError) as refused:
            engine.submit(prompt, params, Received(), generated=generated)
        assert refused.value.param == "generated"
        assert engine.num_live_requests == 0


def test_a_request_that_waits_is_aborted_without_a_state(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode(TEXT)
    with opened(counting_model) as engine:
        received = Received()
        engine.abort(engine.submit(prompt, GREEDY, received), keep=True)
        drive(engine)
        assert received.reason is FinishReason.ABORT
        assert engine.kept_tokens(prompt) == 0
