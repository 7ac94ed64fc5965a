"""Log probabilities of scores, beside those of the definition."""

from __future__ import annotations

import numpy as np
import pytest

from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.sampling.sampler import AllowedTokens, Sampler
from qwonnx.runtime.sampling.scores import Scores

pytestmark = pytest.mark.fast

LOGITS = np.random.default_rng(1).standard_normal(1000, dtype=np.float32) * 5
LOGPROBS = LOGITS.astype(np.float64) - np.log(np.exp(LOGITS.astype(np.float64)).sum())


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_they_are_of_the_softmax_and_the_likeliest_come_first(num_top: int) -> None:
    found = Scores(LOGITS).logprobs(7, num_top)
    assert found.chosen.logprob == pytest.approx(LOGPROBS[7])
    order = np.argsort(-LOGPROBS)[:num_top]
    assert [each.token_id for each in found.top] == order.tolist()
    assert [each.logprob for each in found.top] == pytest.approx(LOGPROBS[order].tolist())


def test_bias_penalties_and_forms_count_and_the_temperature_does_not() -> None:
    params = SamplingParams(temperature=0.3, logit_bias={3: 50.0}, top_k=2)
    sampler = Sampler(params, (), 1000)
    found = sampler.scores(LOGITS).logprobs(3, 1)
    assert found.top[0].token_id == 3
    biased = LOGITS.astype(np.float64)
    biased[3] += 50
    assert found.chosen.logprob == pytest.approx(biased[3] - np.log(np.exp(biased).sum()), abs=1e-6)


@pytest.mark.parametrize("all_but", [True, False])
def test_tokens_that_a_form_excludes_have_no_probability(all_but: bool) -> None:
    allowed = np.array([5, 9, 11], np.intp)
    ids = np.setdiff1d(np.arange(1000), allowed) if all_but else allowed
    scores = Sampler(SamplingParams(), (), 1000).scores(LOGITS, AllowedTokens(ids, all_but))
    found = scores.logprobs(9, 20)
    assert {each.token_id for each in found.top} == {5, 9, 11}
    assert sum(np.exp(each.logprob) for each in found.top) == pytest.approx(1)
    assert found.chosen in found.top


def test_one_token_alone_is_certain() -> None:
    found = Scores(np.array([2.5], np.float32), np.array([4], np.intp)).logprobs(4, 3)
    assert (found.chosen.logprob, len(found.top)) == (0.0, 1)
