"""The engine on real exports, against transformers: the whole path, states bound in place.

The tiny checkpoint is random and reads random tokens; the miniature is trained and reads conversations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from infra.miniature import glossary, retrieval
from infra.miniature.checkpoint import TRAINED
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.cache.capsule import decode, encode
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.cache.rows import row_bytes
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.errors import CapsuleError
from qwonnx.runtime.model.runner import ModelRunner
from qwonnx.runtime.model.session import Session
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.scheduling.sequence import Sequence, StepPlan
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.checkpoints.tokenizer import NUM_TOKENS
from tests.runtime.engine.engine_driver import Received, drive

SETTINGS = RuntimeSettings(num_threads=1, max_num_seqs=3, max_model_len=400)
NUM_GENERATED = 32
PARAMS = SamplingParams(temperature=0, max_tokens=NUM_GENERATED, ignore_eos=True)

Tokens = list[list[int]]


@dataclass(frozen=True, slots=True)
class Exported:
    """A float32 artifact, prompts (the first has 299 tokens or more), and transformers' greedy answers."""

    folder: Path
    prompts: Tokens
    answers: Tokens


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> tuple[Path, Tokens, Tokens]:
    prompts = [np.random.default_rng(length).integers(0, NUM_TOKENS, length).tolist() for length in (300, 45, 1)]
    return tiny_checkpoint, prompts, _greedy_of_transformers(tiny_checkpoint, prompts, NUM_TOKENS)


@pytest.fixture(scope="module")
def miniature() -> tuple[Path, Tokens, Tokens]:
    """A text with a question about it, a question, and the token that begins a turn."""
    tokenizer = Tokenizer.from_file(TRAINED / "tokenizer.json")
    template = ChatTemplate((TRAINED / "chat_template.jinja").read_text(encoding="utf-8"))
    (reading,) = retrieval.held_out(1, 0, lambda text: len(tokenizer.encode(text)), 300)
    (question,) = glossary.held_out(1, 0)
    prompts = [
        tokenizer.encode(template.render(list(example.messages[:-1]), enable_thinking=False))
        for example in (reading, question)
    ]
    prompts.append(tokenizer.encode("<|im_start|>"))
    return TRAINED, prompts, _greedy_of_transformers(TRAINED, prompts, tokenizer.num_tokens)


def _greedy_of_transformers(checkpoint: Path, prompts: Tokens, num_tokens: int) -> Tokens:
    """The continuation by transformers; only the first num_tokens ids of the vocabulary are tokens."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    padding = list(range(num_tokens, model.config.get_text_config().vocab_size))
    # With the checkpoint's own configuration it would stop at end tokens, where the engine continues.
    model.generation_config = GenerationConfig()
    greedy = GenerationConfig(do_sample=False, max_new_tokens=NUM_GENERATED, suppress_tokens=padding or None)
    answers = []
    for prompt in prompts:
        tokens = model.generate(torch.tensor([prompt]), generation_config=greedy)
        answers.append(tokens[0, len(prompt) :].tolist())
    return answers


@pytest.fixture(scope="module", params=[("tiny", "cpu"), ("tiny", "portable"), ("miniature", "cpu")], ids="-".join)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    name, target = request.param
    checkpoint, prompts, answers = request.getfixturevalue(name)
    out = tmp_path_factory.mktemp("artifact") / "fp32"
    export_checkpoint(checkpoint, out, ExportOptions(target=target, weights="fp32"))
    return Exported(out, prompts, answers)


def _answers(exported: Exported, settings: RuntimeSettings, steps_between: int) -> Tokens:
    """Submit all prompts, with this many steps between them, and step until the last one is answered."""
    with Engine.open(exported.folder, settings) as engine:
        received = [Received() for _ in exported.prompts]
        for prompt, receiver in zip(exported.prompts, received, strict=True):
            engine.submit(prompt, PARAMS, receiver)
            for _ in range(steps_between):
                engine.step()
        drive(engine)
    assert [receiver.reason for receiver in received] == [FinishReason.LENGTH] * len(received)
    return [receiver.tokens for receiver in received]


@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
def test_interleaved_requests_in_any_chunks_get_the_tokens_of_transformers(exported: Exported, chunk: int) -> None:
    settings = replace(SETTINGS, max_num_batched_tokens=chunk)
    assert _answers(exported, settings, steps_between=2) == exported.answers


def test_one_after_the_other_in_one_row_gets_the_tokens_of_transformers(exported: Exported) -> None:
    assert _answers(exported, replace(SETTINGS, max_num_seqs=1), steps_between=0) == exported.answers


@pytest.mark.parametrize("at", [1, 64, 200, 299])
def test_a_prompt_that_goes_on_from_a_snapshot_gets_the_tokens_of_transformers(exported: Exported, at: int) -> None:
    prompt, received = exported.prompts[0], [Received(), Received()]
    with Engine.open(exported.folder, replace(SETTINGS, max_num_batched_tokens=100)) as engine:
        engine.submit([*prompt[:at], *exported.prompts[1]], PARAMS, received[0], snapshot_at=[at])
        drive(engine)
        engine.submit(prompt, PARAMS, received[1])
        drive(engine)
    assert received[1].outputs[-1].num_cached_tokens == at
    assert received[1].tokens == exported.answers[0]


def test_restored_states_give_the_logits_of_fresh_ones(exported: Exported) -> None:
    opened, prompt = open_artifact(exported.folder), exported.prompts[0]
    states = opened.decoder.states
    cache = HybridCache(states, max_num_seqs=2, max_model_len=400)
    session = Session(opened.file("decoder.onnx"), SETTINGS)
    runner = ModelRunner(session, states, cache, 2, 400, opened.manifest.model.vocab_size)

    def logits(row: int, start: int, end: int) -> np.ndarray:
        sequence = Sequence("any", prompt, len(prompt), num_computed=start)
        (logits,) = runner.run(StepPlan(row, (sequence,), end - start, wants_logits=True))
        return logits.read_all()[None].copy()

    fresh = logits(0, 0, 290)
    cache.release(0)
    logits(0, 0, 120)
    first = cache.copy_out(0, 0)
    logits(0, 120, 200)
    second = cache.copy_out(0, 120)
    logits(0, 200, 290)  # a copy must not change with the row
    cache.restore(1, [first, second])
    np.testing.assert_allclose(logits(1, 200, 290), fresh, atol=1e-4)
    assert first.num_bytes == cache.segment_bytes(120)
    cache.release(0)
    data = encode(opened.id, states, prompt[:200], cache.buffers.to_host([first, second]))
    cache.restore(0, [cache.buffers.from_host(200, decode(data, opened.id, states, 400).parts)])
    np.testing.assert_allclose(logits(0, 200, 290), fresh, atol=1e-4)


def test_a_capsule_that_fails_in_use_is_set_aside_and_the_prompt_is_read(
    exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    """Its digest is right and its numbers are finite, and the model overflows on them."""
    prompt = exported.prompts[0]
    opened, at = open_artifact(exported.folder), len(prompt) - 9
    parts = [np.full(bytes_of // 4, 3e38, np.float32).data.cast("B") for bytes_of in _part_bytes(opened, at)]
    data = encode(opened.id, opened.decoder.states, prompt[:at], parts)
    with Engine.open(exported.folder, SETTINGS) as engine:
        assert engine.load_capsule(data) == at
        for restored in (0, at):
            engine.submit(prompt, PARAMS, received := Received(), snapshot_at=[at])
            drive(engine)
            assert received.tokens == exported.answers[0]
            assert received.outputs[-1].num_cached_tokens == restored
            assert engine.is_broken(prompt[:at])
            if not restored:
                assert engine.kept_tokens(prompt) == 0
                engine.submit(prompt, PARAMS, Received(), snapshot_at=[at])
                drive(engine)
        assert engine.check() == []
        assert "is read again without it" in caplog.text
        assert not engine.is_broken(prompt)
    nan = [np.full(len(part) // 4, np.nan, np.float32).data.cast("B") for part in parts]
    with (
        Engine.open(exported.folder, SETTINGS) as engine,
        pytest.raises(CapsuleError, match="not finite"),
    ):
        engine.load_capsule(encode(opened.id, opened.decoder.states, prompt[:at], nan))


def _part_bytes(artifact: Artifact, num_tokens: int) -> list[int]:
    return [row_bytes(spec, num_tokens) for spec in artifact.decoder.states]


def test_a_conversation_goes_through_template_and_tokenizer(exported: Exported) -> None:
    with Engine.open(exported.folder, SETTINGS) as engine:
        engine.warm_up()
        assert engine.chat_template is not None
        text = engine.chat_template.render([{"role": "user", "content": "Hello, 世界!"}], enable_thinking=False)
        prompt = engine.tokenizer.encode(text)
        assert engine.tokenizer.decode(prompt, skip_special_tokens=False) == text
        outputs = list(engine.generate(prompt, replace(engine.default_sampling, max_tokens=8, seed=1)))
        assert outputs[-1].finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert outputs[-1].num_prompt_tokens == len(prompt)
