from __future__ import annotations

from typing import Any

import pytest

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.params import SamplingParams

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repetition_penalty", 0.0),
        ("seed", 1 << 63),
        ("max_tokens", 0),
        ("stop", ("",)),
        ("stop", ("x" * 1025,)),
        ("stop", ("x",) * 17),
        ("stop_token_ids", (-1,)),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert name.split("_")[0] in str(caught.value)


def test_a_checkpoints_recommendation_is_taken() -> None:
    config = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1]}
    assert SamplingParams.defaults_from(config) == SamplingParams(temperature=0.6, top_k=20, top_p=0.95)


def test_do_sample_false_is_greedy_and_top_k_zero_keeps_all() -> None:
    assert SamplingParams.defaults_from({"do_sample": False, "temperature": 0.6}).temperature == 0
    assert SamplingParams.defaults_from({"top_k": 0}) == SamplingParams()


def test_a_recommendation_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="top_p"):
        SamplingParams.defaults_from({"top_p": "0.9"})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 10**400, True])
@pytest.mark.parametrize("name", ["temperature", "top_k"])
def test_a_recommendation_that_is_no_number_one_can_use_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        SamplingParams.defaults_from({name: value})


def test_parameters_are_keys_and_a_bias_tells_them_apart() -> None:
    biased = SamplingParams(logit_bias={1: 2.0})
    assert {SamplingParams(): "plain", biased: "biased"}[SamplingParams(logit_bias={1: 2.0})] == "biased"
