"""Guides and logit bias through the engine: they make the counting model say something else."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLParserLimits

from qwonnx.runtime.cache.buffers import BuffersFactory
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling import grammar_check
from qwonnx.runtime.sampling.guide import Guide
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.counting_model import CountingModel, make
from tests.runtime.engine.engine_driver import Received, drive, opened

SETTINGS = RuntimeSettings(num_threads=1, max_num_seqs=3, max_num_batched_tokens=16, max_model_len=512)
SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": ["cat", "dog", "neither"]},
        "sure": {"type": "boolean"},
        "boxes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["label", "sure", "boxes"],
    "additionalProperties": False,
}
RANDOM = SamplingParams(temperature=4, seed=1, guide=Guide.json_schema(SCHEMA))
# Tokens 0 and 1 make the counting model fail: a free request must not draw them.
HARMLESS = {0: -100.0, 1: -100.0}
FREE = SamplingParams(temperature=4, seed=2, max_tokens=24, logit_bias=HARMLESS)


def ask(engine: Engine, prompt: str, params: SamplingParams) -> Received:
    received = Received()
    engine.submit(engine.tokenizer.encode(prompt), params, received)
    drive(engine)
    return received


def test_what_a_random_model_says_is_valid_and_ends_by_itself(counting_model: CountingModel) -> None:
    with opened(counting_model, SETTINGS) as engine:
        answers = [ask(engine, f"Box {seed}", dataclasses.replace(RANDOM, seed=seed)) for seed in range(10)]
    assert {answer.reason for answer in answers} == {FinishReason.STOP}
    assert len({answer.text for answer in answers}) > 5
    for answer in answers:
        jsonschema.validate(json.loads(answer.text), SCHEMA)


def test_greedy_takes_the_likeliest_of_the_allowed(counting_model: CountingModel) -> None:
    params = SamplingParams(temperature=0, max_tokens=5, guide=Guide.regex("[a-z ]*"))
    with opened(counting_model, SETTINGS) as engine:
        free = ask(engine, "the box", SamplingParams(temperature=0, max_tokens=5)).tokens
        assert ask(engine, "the box", params).tokens == free
        other = ask(engine, "the box", dataclasses.replace(params, guide=Guide.regex("[A-Z]{5}")))
    assert re.fullmatch("[A-Z]{5}", other.text)


def test_a_model_that_says_what_it_must_is_not_disturbed_and_one_that_does_not_is_put_right(
    tmp_path: Path, make_buffers: BuffersFactory
) -> None:
    right = '{"label": "dog", "sure": true, "boxes": [1, 22]}'
    wrong = '{"label": "cow", "sure": maybe, "boxes": [1, 220]} I think'
    params = SamplingParams(temperature=0, guide=Guide.json_schema(SCHEMA), max_tokens=300)
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    with opened(make(tmp_path / "right", script=right, make_buffers=make_buffers), SETTINGS) as engine:
        assert ask(engine, prompt, params).text == right
    with opened(make(tmp_path / "wrong", script=wrong, make_buffers=make_buffers), SETTINGS) as engine:
        answer = ask(engine, prompt, dataclasses.replace(params, temperature=2, seed=1))
        jsonschema.validate(json.loads(answer.text), SCHEMA)
        assert answer.reason is FinishReason.STOP


def test_bound_and_free_requests_in_one_batch_say_what_they_say_alone(counting_model: CountingModel) -> None:
    asked = [("one", RANDOM), ("two", FREE), ("three", dataclasses.replace(RANDOM, seed=3)), ("four", FREE)]
    asked.append(("five", SamplingParams(temperature=2, seed=5, guide=Guide.regex("[a-c]{20}"))))
    with opened(counting_model, SETTINGS) as engine:
        alone = [ask(engine, prompt, params).tokens for prompt, params in asked]
        together = [Received() for _ in asked]
        for received, (prompt, params) in zip(together, asked, strict=True):
            engine.submit(engine.tokenizer.encode(prompt), params, received)
        drive(engine)
    assert [received.tokens for received in together] == alone
    assert all(alone)


def test_a_form_begins_after_the_thoughts(tmp_path: Path, make_buffers: BuffersFactory) -> None:
    script = 'He wants {"JSON"}.\n</think>\n\n{"label": "cat", "sure": false, "boxes": []} Done.'
    guide = dataclasses.replace(Guide.json_schema(SCHEMA), after_thinking=True)
    after = "<|im_start|>assistant\n<think>\n"
    model = make(tmp_path / "thinks", script=script, script_after=after, make_buffers=make_buffers)
    with opened(model, SETTINGS) as engine:
        prompt = "<|im_start|>assistant\n<think>\n"
        answer = ask(engine, prompt, SamplingParams(temperature=0, guide=guide))
    assert answer.text == script.removesuffix(" Done.")
    assert answer.reason is FinishReason.STOP


def test_thoughts_without_an_end_run_to_the_last_token(
    counting_model: CountingModel, ending_model: CountingModel
) -> None:
    guide = dataclasses.replace(Guide.json_object(), after_thinking=True)
    for model in (counting_model, ending_model):  # the latter would end after 24 tokens
        with opened(model, SETTINGS) as engine:
            answer = ask(engine, "Hm", SamplingParams(temperature=0, max_tokens=40, guide=guide, logit_bias={122: 1}))
        assert (answer.reason, len(answer.tokens)) == (FinishReason.LENGTH, 40)


@pytest.mark.parametrize(
    ("change", "reason", "length"),
    [
        ({}, FinishReason.STOP, 6),
        ({"max_tokens": 4}, FinishReason.LENGTH, 4),
        ({"max_tokens": 6}, FinishReason.STOP, 6),
        ({"stop": ("{3}{4}",)}, FinishReason.STOP, 3),
        ({"stop": ("{5}!",)}, FinishReason.STOP, 6),
        ({"stop_token_ids": (3,)}, FinishReason.STOP, 3),
        ({"ignore_eos": True}, FinishReason.STOP, 6),
        ({"ignore_eos": True, "max_tokens": 5}, FinishReason.LENGTH, 5),
    ],
    ids=str,
)
def test_an_answer_ends_at_whatever_comes_first(
    counting_model: CountingModel, change: dict[str, Any], reason: FinishReason, length: int
) -> None:
    whole = [chr(token) for token in counting_model.answer([ord("x")], 6)]
    if "stop" in change:
        change = {"stop": tuple(stop.format(*whole) for stop in change["stop"])}
    if "stop_token_ids" in change:
        change = {"stop_token_ids": tuple(ord(whole[place]) for place in change["stop_token_ids"])}
    with opened(counting_model, SETTINGS) as engine:
        answer = ask(engine, "x", SamplingParams(temperature=0, guide=Guide.regex("[a-z ]{3,6}"), **change))
    assert (answer.reason, answer.text) == (reason, "".join(whole[:length]))


def test_a_guide_that_cannot_be_followed_is_refused_on_the_callers_thread(counting_model: CountingModel) -> None:
    with opened(counting_model, SETTINGS) as engine:
        for guide in (Guide.regex("("), Guide.json_schema({"type": "text"})):
            with pytest.raises(InvalidRequestError, match="cannot be followed"):
                engine.submit([1], SamplingParams(guide=guide), Received())
        assert engine.num_live_requests == 0


def test_a_grammar_that_becomes_too_complex_ends_its_own_request_only(
    counting_model: CountingModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(counting_model, SETTINGS) as engine:
        free = ask(engine, "free", FREE).tokens
        tight = LLParserLimits(max_lexer_states=40, verbose_errors=False)
        monkeypatch.setattr(grammar_check, "limits", lambda: tight)
        failing, other = Received(), Received()
        guide = Guide.regex("(.*a){3}.{20}")
        prompt = engine.tokenizer.encode("x")
        engine.submit(prompt, SamplingParams(temperature=0, guide=guide, logit_bias={ord("a"): 50}), failing)
        engine.submit(engine.tokenizer.encode("free"), FREE, other)
        drive(engine)
    assert failing.reason is FinishReason.GUIDE
    assert "cannot continue" in (failing.outputs[-1].error or "")
    assert other.tokens == free


def test_a_bias_makes_a_token_nearly_certain_or_nearly_impossible(counting_model: CountingModel) -> None:
    params = SamplingParams(temperature=1, seed=1, max_tokens=20)
    with opened(counting_model, SETTINGS) as engine:
        assert ask(engine, "x", dataclasses.replace(params, logit_bias={ord("q"): 100})).text == "q" * 20
        letters = {ord(letter): -100.0 for letter in "abcdefghijklmnopqrstuvwxyz "}
        said = ask(engine, "x", dataclasses.replace(params, logit_bias=letters)).tokens
        assert not letters.keys() & set(said)
        guide = Guide.regex("[a-m]{9}")
        assert ask(engine, "x", dataclasses.replace(params, guide=guide, logit_bias={ord("q"): 100})).text != "q" * 9
        with pytest.raises(InvalidRequestError, match="is not one of") as refusal:
            engine.submit([1], dataclasses.replace(params, logit_bias={287: 1}), Received())
        assert refusal.value.param == "logit_bias"


@pytest.mark.parametrize("bias", [{1: 100.5}, {1: float("nan")}, dict.fromkeys(range(301), 1.0)])
def test_a_bias_is_bounded(bias: dict[int, float]) -> None:
    with pytest.raises(InvalidRequestError, match="logit_bias"):
        SamplingParams(logit_bias=bias)


def test_closing_ends_the_threads_that_compute_masks(counting_model: CountingModel) -> None:
    before = set(threading.enumerate())
    with opened(counting_model, SETTINGS) as engine:
        engine.start()
        assert {thread.name for thread in set(threading.enumerate()) - before} == {"qwonnx-engine"}
        outputs = engine.generate([1], dataclasses.replace(RANDOM, max_tokens=200))
        next(outputs)
        assert any(thread.name.startswith("qwonnx-mask") for thread in threading.enumerate())
    assert set(threading.enumerate()) - before == set()
