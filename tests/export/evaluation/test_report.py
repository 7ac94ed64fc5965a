"""Numbers of a report, compared with their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qwonnx.export.evaluation.measures import perplexity, token_scores
from qwonnx.export.evaluation.report import expert_usage, layer_usage

pytestmark = pytest.mark.fast


def test_even_use_has_the_highest_entropy_and_one_expert_alone_none() -> None:
    even = layer_usage(3, np.full(8, 5))
    assert (even.layer, even.entropy_bits, even.entropy_share, even.least_share) == (3, 3.0, 1.0, 1.0)
    alone = layer_usage(0, np.array([0, 7, 0, 0]))
    assert (alone.entropy_bits, alone.entropy_share, alone.least_share) == (0.0, 0.0, 0.0)
    skewed = layer_usage(0, np.array([1, 3]))
    assert skewed.entropy_bits == pytest.approx(0.25 * 2 + 0.75 * math.log2(4 / 3))
    assert skewed.least_share == 0.5


def test_usage_knows_how_many_experts_a_token_has() -> None:
    usage = expert_usage(np.array([[2, 2, 2, 0], [3, 3, 0, 0]]), 3)
    assert usage is not None
    assert (usage.num_experts, usage.num_experts_per_tok, usage.num_tokens, len(usage.layers)) == (4, 2, 3, 2)
    assert expert_usage(np.zeros((2, 4), np.int64), 0) is None


def test_perplexity_of_equal_chances_is_their_number() -> None:
    assert perplexity(np.full(5, math.log(12))) == pytest.approx(12)
    assert perplexity(np.empty(0)) is None
    assert perplexity(np.array([1e4])) is None


def test_tokens_are_scored_in_float64_and_padding_rows_do_not_count() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal((70, 11)).astype(np.float32) * 30
    targets = random.integers(0, 9, 70)
    scores = token_scores(logits, targets, 9)
    exact = logits[:, :9].astype(np.float64)
    expected = np.log(np.exp(exact).sum(-1)) - exact[np.arange(70), targets]
    np.testing.assert_allclose(scores.surprise, expected, rtol=1e-12)
    assert (scores.likeliest == exact.argmax(-1)).all()
