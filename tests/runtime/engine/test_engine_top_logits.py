"""Graphs that give their largest logits, as those for devices do: the same answers as from all logits."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwonnx.runtime.cache.buffers import BuffersFactory
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.counting_model import NAN_TEXT, make
from tests.runtime.engine.engine_driver import Received, drive

pytestmark = pytest.mark.fast

PROMPTS = [[70, 71, 72], [80] * 9, [90, 95]]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=12),
    SamplingParams(temperature=0, max_tokens=12, presence_penalty=200.0 / 100),
    SamplingParams(seed=3, top_k=1, max_tokens=12),
    SamplingParams(seed=4, temperature=50, top_k=30, max_tokens=12),
    SamplingParams(seed=5, temperature=50, max_tokens=12),
    SamplingParams(seed=6, temperature=50, top_k=20, max_tokens=12, guide=Guide.regex("[a-h]{3,20}", "regex")),
]


@pytest.fixture(scope="module", params=[4, 64])
def answers(
    request: pytest.FixtureRequest, make_buffers: BuffersFactory, tmp_path_factory: pytest.TempPathFactory
) -> list[list[Received]]:
    """Of the model with all logits, and of the one with the largest ones apart."""
    settings = RuntimeSettings(max_num_seqs=3, max_num_batched_tokens=4, max_model_len=64)
    received = []
    for num_top in (None, request.param):
        folder = Path(tmp_path_factory.mktemp("top")) / "artifact"
        model = make(folder, num_top_logits=num_top, make_buffers=make_buffers)
        each = [Received() for _ in range(len(PROMPTS) * len(PARAMS) + 1)]
        with model.open(settings) as engine:
            for index, one in enumerate(each[:-1]):
                engine.submit(PROMPTS[index % len(PROMPTS)], PARAMS[index // len(PROMPTS)], one)
            engine.submit(model.tokenizer.encode(f"a{NAN_TEXT}"), PARAMS[0], each[-1])
            drive(engine)
        received.append(each)
    return received


def test_answers_are_the_same(answers: list[list[Received]]) -> None:
    from_all, from_largest = answers
    assert [each.tokens for each in from_largest] == [each.tokens for each in from_all]
    assert [each.reason for each in from_largest] == [each.reason for each in from_all]


def test_logits_that_are_not_numbers_end_a_request(answers: list[list[Received]]) -> None:
    assert {each[-1].reason for each in answers} == {FinishReason.ERROR}
