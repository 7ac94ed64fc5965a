"""Predictions that come in slices of the vocabulary are compared as whole ones are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from qwonnx.export.evaluation.measures import kl_divergence, token_scores
from qwonnx.export.evaluation.verify import measure
from qwonnx.export.verification.predictions import LogitSlice, compare_predictions

pytestmark = pytest.mark.fast

RANDOM = np.random.default_rng(0)
REFERENCE = (RANDOM.standard_normal((9, 53)) * 8).astype(np.float32)
ARTIFACT = (REFERENCE + RANDOM.standard_normal((9, 53))).astype(np.float32)
OWN = (REFERENCE + RANDOM.standard_normal((9, 53)) / 10).astype(np.float32)
TOKENS = RANDOM.integers(0, 53, 9)


def slices(width: int, *, own: bool = True) -> Iterator[LogitSlice]:
    for start in range(0, 53, width):
        rows = slice(start, min(start + width, 53))
        yield LogitSlice(rows, REFERENCE[:, rows], ARTIFACT[:, rows], OWN[:, rows] if own else None)


@pytest.mark.parametrize("width", [1, 7, 53])
def test_numbers_are_those_of_whole_logits(width: int) -> None:
    found, whole = compare_predictions(slices(width), TOKENS), measure(REFERENCE, ARTIFACT, TOKENS)
    np.testing.assert_allclose(found.kl, kl_divergence(REFERENCE, ARTIFACT), rtol=1e-9)
    np.testing.assert_allclose(found.surprise_checkpoint, token_scores(REFERENCE[:-1], TOKENS[1:]).surprise)
    np.testing.assert_allclose(np.exp(found.surprise_artifact.mean()), whole.perplexity_artifact)
    assert found.same_token.mean() == whole.top1_agreement
    assert found.max_logit_difference == pytest.approx(whole.max_logit_difference)
    logs = REFERENCE.astype(np.float64) - np.log(np.exp(REFERENCE.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(found.entropy, -(np.exp(logs) * logs).sum(-1))


def test_errors_are_relative_to_the_spread_of_logits_and_no_constant_counts() -> None:
    shifted = [LogitSlice(slice(0, 53), REFERENCE, ARTIFACT + 5, OWN)]
    found, moved = compare_predictions(slices(10), TOKENS), compare_predictions(shifted, TOKENS)
    expected = (ARTIFACT.astype(np.float64) - REFERENCE).std(-1) / REFERENCE.astype(np.float64).std(-1)
    np.testing.assert_allclose(found.logit_error, expected, rtol=1e-6)
    np.testing.assert_allclose(moved.logit_error, expected, rtol=1e-5)
    np.testing.assert_allclose(moved.kl, found.kl, atol=1e-5)
    assert found.head_error is not None
    assert compare_predictions(slices(10, own=False), TOKENS).head_error is None


def test_some_positions_are_chosen_from_all() -> None:
    found = compare_predictions(slices(10), TOKENS)
    some = found.at(np.array([2, 8]))
    assert some.kl.tolist() == found.kl[[2, 8]].tolist()
    assert some.surprise_checkpoint.tolist() == found.surprise_checkpoint[[2]].tolist(), "the last token has no next"


def test_models_that_predict_nothing_are_equal() -> None:
    nothing = np.zeros((3, 20), np.float32)
    found = compare_predictions([LogitSlice(slice(0, 20), nothing, nothing, nothing)], np.array([1, 2, 3]))
    assert found.logit_error.tolist() == found.kl.tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(np.exp(found.entropy), 20)
