"""The engine on real exports of the tiny checkpoint, against transformers: the whole path, states bound in place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.artifact import open_artifact
from qwonnx.runtime.cache import HybridCache
from qwonnx.runtime.capsule import decode, encode
from qwonnx.runtime.engine import Engine
from qwonnx.runtime.model_inputs import InputBuffers
from qwonnx.runtime.model_runner import ModelRunner
from qwonnx.runtime.request import FinishReason
from qwonnx.runtime.sampling_params import SamplingParams
from qwonnx.runtime.scheduler import Sequence, StepPlan
from qwonnx.runtime.session import Session
from qwonnx.runtime.settings import RuntimeSettings
from tests.checkpoints.tokenizer import NUM_TOKENS
from tests.runtime.engine_driver import Received, drive

SETTINGS = RuntimeSettings(num_threads=1, max_num_seqs=3, max_model_len=400)
PARAMS = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
PROMPTS = tuple(np.random.default_rng(length).integers(0, NUM_TOKENS, length).tolist() for length in (300, 45, 1))

Tokens = list[list[int]]


@pytest.fixture(scope="module")
def greedy_of_transformers(tiny_checkpoint: Path) -> Tokens:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    padding = list(range(NUM_TOKENS, model.config.get_text_config().vocab_size))
    answers = []
    for prompt in PROMPTS:
        tokens = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=32,
            min_new_tokens=32,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            suppress_tokens=padding,
        )
        answers.append(tokens[0, len(prompt) :].tolist())
    return answers


@pytest.fixture(scope="module", params=["cpu", "portable"])
def artifact(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifact") / "fp32"
    export_checkpoint(tiny_checkpoint, out, ExportOptions(target=request.param, weights="fp32"))
    return out


def _answers(folder: Path, settings: RuntimeSettings, steps_between: int) -> Tokens:
    """Submit all prompts, so many steps apart, and step until the last is answered."""
    with Engine.open(folder, settings) as engine:
        received = [Received() for _ in PROMPTS]
        for prompt, receiver in zip(PROMPTS, received, strict=True):
            engine.submit(prompt, PARAMS, receiver)
            for _ in range(steps_between):
                engine.step()
        drive(engine)
    assert [receiver.reason for receiver in received] == [FinishReason.LENGTH] * len(PROMPTS)
    return [receiver.tokens for receiver in received]


@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
def test_interleaved_requests_in_any_chunks_get_the_tokens_of_transformers(
    artifact: Path, greedy_of_transformers: Tokens, chunk: int
) -> None:
    settings = replace(SETTINGS, max_num_batched_tokens=chunk)
    assert _answers(artifact, settings, steps_between=2) == greedy_of_transformers


def test_one_after_the_other_in_one_row_gets_the_tokens_of_transformers(
    artifact: Path, greedy_of_transformers: Tokens
) -> None:
    assert _answers(artifact, replace(SETTINGS, max_num_seqs=1), steps_between=0) == greedy_of_transformers


@pytest.mark.parametrize("at", [1, 64, 200, 299])
def test_a_prompt_that_goes_on_from_a_snapshot_gets_the_tokens_of_transformers(
    artifact: Path, greedy_of_transformers: Tokens, at: int
) -> None:
    prompt, received = PROMPTS[0], [Received(), Received()]
    with Engine.open(artifact, replace(SETTINGS, max_num_batched_tokens=100)) as engine:
        engine.submit([*prompt[:at], *PROMPTS[1]], PARAMS, received[0], snapshot_at=[at])
        drive(engine)
        engine.submit(prompt, PARAMS, received[1])
        drive(engine)
    assert received[1].outputs[-1].num_cached_tokens == at
    assert received[1].tokens == greedy_of_transformers[0]


def test_restored_states_give_the_logits_of_fresh_ones(artifact: Path) -> None:
    opened, prompt = open_artifact(artifact), PROMPTS[0]
    states = opened.manifest.states
    cache = HybridCache(states, max_num_seqs=2, max_model_len=400)
    session = Session(opened.file("decoder.onnx"), SETTINGS)
    runner = ModelRunner(session, states, cache, InputBuffers(2, 400), 2, opened.manifest.model.vocab_size)

    def logits(row: int, start: int, end: int) -> np.ndarray:
        sequence = Sequence("any", prompt, len(prompt), num_computed=start)
        return runner.run(StepPlan(row, (sequence,), end - start, wants_logits=True)).copy()

    fresh = logits(0, 0, 300)
    cache.release(0)
    logits(0, 0, 120)
    first = cache.copy_out(0, 0)
    logits(0, 120, 200)
    second = cache.copy_out(0, 120)
    logits(0, 200, 300)  # what was copied must not change with the row
    cache.restore(1, [first, second])
    np.testing.assert_allclose(logits(1, 200, 300), fresh, atol=1e-4)
    assert first.num_bytes == cache.segment_bytes(120)
    cache.release(0)
    capsule = decode(encode(opened.id, states, prompt[:200], [first, second]), opened.id, states, 400)
    cache.restore(0, [capsule.segment])
    np.testing.assert_allclose(logits(0, 200, 300), fresh, atol=1e-4)


def test_a_conversation_goes_through_template_and_tokenizer(artifact: Path) -> None:
    with Engine.open(artifact, SETTINGS) as engine:
        engine.warm_up()
        assert engine.chat_template is not None
        text = engine.chat_template.render([{"role": "user", "content": "Hello, 世界!"}], enable_thinking=False)
        prompt = engine.tokenizer.encode(text)
        assert engine.tokenizer.decode(prompt, skip_special_tokens=False) == text
        outputs = list(engine.generate(prompt, replace(engine.default_sampling, max_tokens=8, seed=1)))
        assert outputs[-1].finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert outputs[-1].num_prompt_tokens == len(prompt)
