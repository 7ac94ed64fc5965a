"""Each part of the sampler against transformers' processor of that name, then the draw itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers.generation import logits_process as reference

from qwonnx.runtime.errors import SessionError
from qwonnx.runtime.sampling.logits import TopLogits
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.sampling.penalties import Penalties
from qwonnx.runtime.sampling.sampler import AllowedTokens, Sampler

FloatArray = npt.NDArray[np.float32]


def _logits(size: int, seed: int = 0, scale: float = 3.0) -> FloatArray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def _distribution(params: SamplingParams, logits: FloatArray, draws: int) -> FloatArray:
    """The distribution of the sampler's draw: its inverse distribution at evenly spaced numbers."""
    points = iter((np.arange(draws) + 0.5) / draws)
    sampler = Sampler(params, [], logits.size, random=lambda: float(next(points)))
    chosen = [sampler.sample(logits) for _ in range(draws)]
    return (np.bincount(chosen, minlength=logits.size) / draws).astype(np.float32)


def _expected(processors: Sequence[Any], tokens: Sequence[int], logits: FloatArray) -> FloatArray:
    scores = torch.from_numpy(logits.copy())[None]
    for processor in processors:
        scores = processor(torch.tensor([list(tokens)]), scores)
    probabilities: FloatArray = torch.softmax(scores.double(), dim=-1)[0].numpy().astype(np.float32)
    return probabilities


@pytest.mark.parametrize("size", [40, 5000])
@pytest.mark.parametrize(
    ("params", "processors"),
    [
        (SamplingParams(temperature=0.7), [reference.TemperatureLogitsWarper(0.7)]),
        (SamplingParams(top_k=7), [reference.TopKLogitsWarper(7)]),
        (SamplingParams(top_k=1), [reference.TopKLogitsWarper(1)]),
        (SamplingParams(top_p=0.8), [reference.TopPLogitsWarper(0.8)]),
        (SamplingParams(top_p=0.01), [reference.TopPLogitsWarper(0.01)]),
        (SamplingParams(min_p=0.1), [reference.MinPLogitsWarper(0.1)]),
        (
            SamplingParams(temperature=1.3, top_k=20, top_p=0.9, min_p=0.05),
            [
                reference.TemperatureLogitsWarper(1.3),
                reference.TopKLogitsWarper(20),
                reference.TopPLogitsWarper(0.9),
                reference.MinPLogitsWarper(0.05),
            ],
        ),
    ],
)
def test_the_distribution_is_that_of_transformers(params: SamplingParams, processors: list[Any], size: int) -> None:
    logits = _logits(size)
    draws = 4000
    found = _distribution(params, logits, draws)
    # Evenly spaced numbers hit each interval to within one draw.
    np.testing.assert_allclose(found, _expected(processors, [0], logits), atol=1.5 / draws)


def test_a_large_vocabulary_keeps_exactly_the_top_k_and_top_p_of_transformers() -> None:
    logits = _logits(50_000, seed=3)
    for params, processor in [
        (SamplingParams(top_k=50), reference.TopKLogitsWarper(50)),
        (SamplingParams(top_p=0.3), reference.TopPLogitsWarper(0.3)),
    ]:
        allowed = set(np.flatnonzero(_expected([processor], [0], logits)).tolist())
        sampler = Sampler(params, [], logits.size)
        assert {sampler.sample(logits) for _ in range(300)} <= allowed


def test_the_repetition_penalty_is_that_of_transformers_over_prompt_and_answer() -> None:
    logits = _logits(30)
    prompt = [3, 3, 5]
    penalties = Penalties(SamplingParams(repetition_penalty=1.5), prompt)
    for token in (7, 8, 7, 3):
        penalties.count(token)
    penalized = penalties.apply(logits)
    expected = reference.RepetitionPenaltyLogitsProcessor(1.5)(
        torch.tensor([[*prompt, 7, 8]]), torch.from_numpy(logits.copy())[None]
    )
    np.testing.assert_array_equal(penalized, expected[0].numpy())


def test_presence_counts_once_and_frequency_every_time_and_the_prompt_not_at_all() -> None:
    logits = np.zeros(6, dtype=np.float32)
    logits[2] = 5
    params = SamplingParams(temperature=0, presence_penalty=1, frequency_penalty=0.5)
    sampler, penalties = Sampler(params, [1, 1], 6), Penalties(params, [1, 1])
    for _ in range(2):
        assert sampler.sample(logits) == 2
        penalties.count(2)
    np.testing.assert_allclose(penalties.apply(logits), [0, 0, 5 - 1 - 2 * 0.5, 0, 0, 0])
    np.testing.assert_array_equal(logits, [0, 0, 5, 0, 0, 0])


def test_counts_of_a_long_answer_are_those_of_transformers() -> None:
    logits = _logits(400)
    penalties = Penalties(SamplingParams(repetition_penalty=1.2, frequency_penalty=0.1), [1, 2, 3, 2])
    answer = np.random.default_rng(1).integers(0, 300, 500).tolist()
    for token in answer:
        penalties.count(token)
    expected = reference.RepetitionPenaltyLogitsProcessor(1.2)(
        torch.tensor([[1, 2, 3, 2, *answer]]), torch.from_numpy(logits.copy())[None]
    )[0].numpy() - 0.1 * np.bincount(answer, minlength=400)
    np.testing.assert_allclose(penalties.apply(logits), expected, rtol=1e-6, atol=1e-6)


def test_many_draws_follow_the_softmax() -> None:
    logits = _logits(12, scale=1.0)
    sampler = Sampler(SamplingParams(seed=1), [], 12)
    draws = 20_000
    found = np.bincount([sampler.sample(logits) for _ in range(draws)], minlength=12)
    expected = _expected([], [0], logits) * draws
    chi_squared = float(((found - expected) ** 2 / expected).sum())
    assert chi_squared < 35  # 11 degrees of freedom: beyond it once in 4,000 seeds


def test_a_seed_fixes_the_choice_and_another_changes_it() -> None:
    logits = _logits(500)
    first, again, other = (Sampler(SamplingParams(seed=seed), [], 500) for seed in (-7, -7, 8))
    choices = [[sampler.sample(logits) for _ in range(20)] for sampler in (first, again, other)]
    assert choices[0] == choices[1] != choices[2]


def test_temperature_zero_takes_the_first_of_the_likeliest() -> None:
    assert Sampler(SamplingParams(temperature=0), [], 4).sample(np.array([1, 3, 3, 2], dtype=np.float32)) == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-7])
def test_a_temperature_of_almost_zero_is_zero(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), [], 4)
    assert sampler.sample(np.array([1, 3, 3, 2], dtype=np.float32)) == 1


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_k=2, top_p=0.5)]
)
def test_rows_that_pad_the_vocabulary_are_never_sampled(params: SamplingParams) -> None:
    logits = np.array([0, 1, 2, 90, 90, np.nan], dtype=np.float32)
    sampler = Sampler(params, [0], 3)
    assert {sampler.sample(logits) for _ in range(50)} <= {0, 1, 2}


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_k=2)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(params: SamplingParams, value: float) -> None:
    with pytest.raises(SessionError, match="not finite"):
        Sampler(params, [], 3).sample(np.array([0, value, 2], dtype=np.float32))
    with pytest.raises(SessionError, match="not finite"):
        Sampler(params, [], 3).sample(np.full(3, -np.inf, dtype=np.float32))


@pytest.mark.parametrize("top_p", [0.1, 0.999999, 1.0])
def test_equal_logits_leave_something_to_draw(top_p: float) -> None:
    logits = np.zeros(10_000, dtype=np.float32)
    assert 0 <= Sampler(SamplingParams(top_p=top_p, top_k=9_999), [], logits.size).sample(logits) < logits.size


_EVERY_KIND = [
    SamplingParams(temperature=0),
    SamplingParams(seed=1),
    SamplingParams(seed=1, temperature=1.5, top_k=5),
    SamplingParams(seed=1, top_p=0.7, min_p=0.01),
    SamplingParams(seed=1, repetition_penalty=1.3, presence_penalty=0.5, logit_bias={0: 3.0, 7: -2.0}),
]


@pytest.mark.parametrize("size", [40, 3000])
@pytest.mark.parametrize("params", _EVERY_KIND, ids=lambda params: str(params.top_k))
def test_allowed_tokens_are_drawn_from_their_own_distribution_however_they_are_named(
    params: SamplingParams, size: int
) -> None:
    logits, mask = _logits(size), np.arange(size) % 3 == 0
    forbidden = np.where(mask, logits, -np.inf).astype(np.float32)
    samplers = [Sampler(params, [1, 2, 3], size) for _ in range(3)]
    for _ in range(30):
        some = samplers[0].sample(logits, AllowedTokens(np.flatnonzero(mask), all_but=False))
        others = samplers[1].sample(logits, AllowedTokens(np.flatnonzero(~mask), all_but=True))
        assert some == others == samplers[2].sample(forbidden)
        assert mask[some]


@pytest.mark.parametrize("point", [0.0, 0.5, 1 - 2**-53])
def test_a_token_that_is_not_allowed_is_never_drawn_whatever_the_rounding(point: float) -> None:
    size = 2000
    for start in range(0, size, 97):
        banned = np.setdiff1d(np.arange(size), np.arange(start, min(start + 40, size)))
        sampler = Sampler(SamplingParams(), [], size, random=lambda: point)
        assert start <= sampler.sample(_logits(size, start), AllowedTokens(banned, all_but=True)) < start + 40


def _top(logits: FloatArray, count: int) -> TopLogits:
    """The largest logits, equal ones in any order, as a device chooses them."""
    order = np.random.default_rng(0).permutation(logits.size)
    largest = order[np.argsort(-logits[order])][:count]
    return TopLogits(largest, logits[largest])


@pytest.mark.parametrize(
    ("params", "share"),  # share: of draws that the largest logits must decide
    [
        (SamplingParams(temperature=0), 1.0),
        (SamplingParams(temperature=0, presence_penalty=1.5), 1.0),
        (SamplingParams(seed=1, temperature=0.7, top_k=20, top_p=0.8), 1.0),
        (SamplingParams(seed=1, top_k=20, top_p=0.95, min_p=0.02, presence_penalty=1.5), 0.9),
        (SamplingParams(seed=1, top_k=20, repetition_penalty=1.2, frequency_penalty=0.2), 0.9),
        (SamplingParams(seed=1, top_k=64), 0.0),
        (SamplingParams(seed=1, top_p=0.5), 0.0),
        (SamplingParams(seed=1, top_k=20, presence_penalty=-1), 0.0),
        (SamplingParams(seed=1, top_k=20, repetition_penalty=0.9), 0.0),
        (SamplingParams(seed=1, top_k=20, logit_bias={5: 40}), 0.0),
    ],
)
@pytest.mark.parametrize("banned", [None, 40, 2600])
@pytest.mark.parametrize("step", [0.0, 0.5])  # logits rounded to multiples, so that many are equal
def test_the_largest_logits_choose_as_all_do(
    params: SamplingParams, share: float, banned: int | None, step: float
) -> None:
    size, num_tokens, draws = 3000, 2990, 60
    prompt = list(range(60))
    every, top = (Sampler(params, prompt, num_tokens) for _ in range(2))
    decided = 0
    for draw in range(draws):
        logits = _logits(size, draw)
        if step:
            logits = (np.round(logits / step) * step).astype(np.float32)
        allowed = None
        if banned is not None:
            ids = np.sort(np.random.default_rng(draw).choice(num_tokens, banned, replace=False))
            allowed = AllowedTokens(ids, all_but=True)
        expected = every.sample(logits, allowed)
        token = top.sample_top(_top(logits, 64), allowed)
        decided += token is not None
        assert (top.sample(logits, allowed) if token is None else token) == expected
    if not step and banned != 2600:
        assert decided >= share * draws
    if not share:
        assert not decided


def test_the_largest_logits_do_not_decide_where_only_some_tokens_are_allowed_or_numbers_are_not_finite() -> None:
    sampler = Sampler(SamplingParams(temperature=0), [], 100)
    logits = _logits(100)
    assert sampler.sample_top(_top(logits, 10), AllowedTokens(np.array([3]), all_but=False)) is None
    for value in (np.nan, np.inf, -np.inf):
        values = np.full(10, value, np.float32)
        assert sampler.sample_top(TopLogits(np.arange(10), values)) is None
        with pytest.raises(SessionError, match="not finite"):
            sampler.sample(np.full(100, value, np.float32))
    assert sampler.sample_top(TopLogits(np.array([-1, 200, 3]), np.array([9, 8, 7], np.float32))) is None


def test_a_bias_is_added_before_anything_else() -> None:
    logits = np.array([0, 1, 2, 3], dtype=np.float32)
    assert Sampler(SamplingParams(temperature=0, logit_bias={0: 3.5}), [], 4).sample(logits) == 0
    assert Sampler(SamplingParams(temperature=0, logit_bias={3: -1.5}), [], 4).sample(logits) == 2
    halved = SamplingParams(temperature=0, logit_bias={0: 5.0}, repetition_penalty=2)
    assert Sampler(halved, [0], 4).sample(logits) == 3
    np.testing.assert_array_equal(logits, [0, 1, 2, 3])
