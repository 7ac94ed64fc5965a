"""The engine over an int8 or int4 cache, bound in place: the same answers for any chunks, rows and batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.cache.rows import RowMove, row_cost
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.checkpoints.tokenizer import NUM_TOKENS
from tests.export.decoder import Decoder, onnxruntime_session
from tests.runtime.cache.row_content import PythonGraph, in_bytes, random_segment
from tests.runtime.engine.engine_driver import Received, drive

SETTINGS = RuntimeSettings(num_threads=1, max_num_seqs=3, max_model_len=200)
MAX_TOKENS = 12
PARAMS = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
PROMPTS = tuple(np.random.default_rng(length).integers(0, NUM_TOKENS, length).tolist() for length in (120, 45, 1))

Tokens = list[list[int]]


@pytest.fixture(scope="module", params=["cpu-int8", "cpu-int4", "portable-int8", "portable-int4"])
def folder(request: pytest.FixtureRequest, long_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target, kv = request.param.split("-")
    out = tmp_path_factory.mktemp("artifact") / str(request.param)
    export_checkpoint(long_checkpoint, out, ExportOptions(target=target, weights="fp32", kv=kv))
    return out


@pytest.fixture(scope="module")
def greedy(folder: Path) -> Tokens:
    """Answers from plain arrays: every sequence by itself, with its whole text in one chunk again for every token."""
    artifact, answers = open_artifact(folder), []
    session = onnxruntime_session(artifact)
    for prompt in PROMPTS:
        tokens = list(prompt)
        for last in range(len(prompt) - 1, len(prompt) + MAX_TOKENS - 1):
            logits = Decoder(artifact, max_model_len=200, session=session).step([tokens], logit_positions=[last])
            tokens.append(int(logits[0, 0, :NUM_TOKENS].argmax()))
        answers.append(tokens[len(prompt) :])
    return answers


def _answers(folder: Path, settings: RuntimeSettings, steps_between: int) -> Tokens:
    """Submit all prompts, with this many steps between them, and step until the last one is answered."""
    with Engine.open(folder, settings) as engine:
        received = [Received() for _ in PROMPTS]
        for prompt, receiver in zip(PROMPTS, received, strict=True):
            engine.submit(prompt, PARAMS, receiver)
            for _ in range(steps_between):
                engine.step()
        drive(engine)
    assert [receiver.reason for receiver in received] == [FinishReason.LENGTH] * len(PROMPTS)
    return [receiver.tokens for receiver in received]


@pytest.mark.parametrize("chunk", [1, 7, 64, 120])
def test_interleaved_requests_in_any_chunks_get_the_tokens_of_each_alone(
    folder: Path, greedy: Tokens, chunk: int
) -> None:
    assert _answers(folder, replace(SETTINGS, max_num_batched_tokens=chunk), steps_between=2) == greedy


def test_one_after_the_other_in_one_row_gets_the_same_tokens(folder: Path, greedy: Tokens) -> None:
    assert _answers(folder, replace(SETTINGS, max_num_seqs=1), steps_between=0) == greedy


def test_the_cache_has_the_types_and_the_size_that_the_manifest_states(folder: Path) -> None:
    states, graph = open_artifact(folder).decoder.states, PythonGraph()
    HostBuffers(states, 3, 100).bind(graph, 0, 3)
    dtype, token_bytes = (np.int8, 2 * 32) if folder.name.endswith("int8") else (np.uint8, 2 * 16)
    for spec in states:
        if spec.kind in ("key", "value"):
            assert graph.inputs[spec.past].dtype == dtype
    assert row_cost(states).bytes_per_token == token_bytes


def test_a_move_carries_codes_as_they_are(folder: Path) -> None:
    states = open_artifact(folder).decoder.states
    cache = HybridCache(states, max_num_seqs=2, max_model_len=10)
    segment = random_segment(cache.buffers, states, 6)
    cache.restore(1, [segment])
    cache.move(RowMove(1, 0, 6))
    assert in_bytes(cache.buffers, cache.copy_out(0, 0)) == in_bytes(cache.buffers, segment)
