"""Checks of a request by admission itself; test_engine.py tests them through the engine."""

from __future__ import annotations

import json

import pytest

from qwonnx.runtime.engine.admission import Admission
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.grammar import GrammarCompiler
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.runtime.counting_model import tokenizer_json

pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def admission() -> Admission:
    """Ten tokens per sequence; only ids below 200 are accepted."""
    tokenizer = Tokenizer(json.dumps(tokenizer_json()))
    return Admission(tokenizer, frozenset({2}), 200, 10, GrammarCompiler(tokenizer, frozenset({2}), 200))


def test_an_answer_may_be_as_long_as_there_is_room_or_as_was_asked_for(admission: Admission) -> None:
    assert admission.settle_max_tokens([1] * 4, SamplingParams()) == 6
    assert admission.settle_max_tokens([1] * 9, SamplingParams()) == 1
    assert admission.settle_max_tokens([1] * 4, SamplingParams(max_tokens=5)) == 5
    assert admission.settle_max_tokens([1] * 8, SamplingParams(max_tokens=32_000)) == 2, "more than fit"


@pytest.mark.parametrize(
    ("prompt", "params", "said", "param"),
    [
        ([], SamplingParams(), "the prompt is empty", "prompt"),
        ([1, 200], SamplingParams(), "token id 200 is not one of the 200", "prompt"),
        ([-1], SamplingParams(), "token id -1", "prompt"),
        ([1], SamplingParams(logit_bias={300: 1.0}), "token id 300", "logit_bias"),
        ([1] * 10, SamplingParams(), "at most 9 fit", "prompt"),
    ],
)
def test_what_cannot_be_served_is_refused(
    admission: Admission, prompt: list[int], params: SamplingParams, said: str, param: str
) -> None:
    with pytest.raises(InvalidRequestError, match=said) as caught:
        admission.admit(prompt, params, print, request_id=None, boundaries=(), deadline=None, owner="")
    assert caught.value.param == param


def test_an_admitted_request_has_a_name_its_boundaries_and_its_limit(admission: Admission) -> None:
    prompt = [1] * 8
    named, unnamed = (
        admission.admit(prompt, SamplingParams(), print, request_id=name, boundaries=(3,), deadline=None, owner="")
        for name in ("a", None)
    )
    assert (named.request_id, named.sequence.boundaries, named.sequence.num_prompt_tokens) == ("a", (3,), 8)
    assert len(unnamed.request_id) == 32
    assert [named.push(5).finish_reason for _ in range(2)] == [None, FinishReason.LENGTH]


def test_unknown_tokens_are_named_by_the_first(admission: Admission) -> None:
    assert admission.unknown_token([1, 199]) is None
    assert admission.unknown_token([1, 250, 300]) == 250
