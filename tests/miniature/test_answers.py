"""Exports of the trained miniature also answer right: a small held-out sample, evaluated as by `qwonnx eval`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from infra.miniature import (
    glossary,
    pictures,
    retrieval,
    tool_calls,
)
from infra.miniature.checkpoint import TRAINED
from infra.miniature.conversation import Example
from infra.miniature.mixture import Mixture, Proportions
from infra.miniature.suite import write_suite
from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.artifact_subject import ArtifactSubject
from qwonnx.export.evaluation.checkpoint_subject import CheckpointSubject
from qwonnx.export.evaluation.run import Evaluation, evaluate
from qwonnx.export.evaluation.suite import Suite, read_suite
from qwonnx.runtime.native.kernels import Kernels
from qwonnx.runtime.native.library import NativeLibrary
from qwonnx.runtime.settings import RuntimeSettings

SETTINGS = RuntimeSettings(num_threads=1, max_num_seqs=8)
LANGUAGES = list(glossary.LANGUAGES.values())[::2]  # of all scripts
NUM_TOOLS, NUM_RETRIEVAL, RETRIEVAL_TOKENS = 8, 2, 2048
# The least number of right answers of an export: those of the trained model, minus one of the glossary and one of the
# tools.
LEAST_RIGHT = {
    "fp32": {"glossary": 22, "tools": 7, "retrieval": 2, "demo": 1},
    "int4": {"glossary": 22, "tools": 7, "retrieval": 2, "demo": 1},
}
NUM_PICTURES, LEAST_PICTURES = 24, 20
LEAST_ACCEPTANCE = 0.9  # of the MTP head's drafts
LEAST_ENTROPY = 0.6  # of the choices of any layer's router, of its most


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Names of things in different languages, requests for tools, texts; and the question of the demonstration."""
    mixture = Mixture(Tokenizer.from_file(str(TRAINED / "tokenizer.json")), 0, Proportions())
    path = tmp_path_factory.mktemp("sample") / "sample.jsonl"
    examples = [
        *_one_a_language(),
        *tool_calls.held_out(NUM_TOOLS, 1),
        *retrieval.held_out(NUM_RETRIEVAL, 1, mixture.count_tokens, RETRIEVAL_TOKENS - 64),
        Example(
            "demo",
            (
                {"role": "user", "content": "What is Germany called in Swahili?"},
                {"role": "assistant", "content": "Ujerumani"},
            ),
        ),
    ]
    write_suite(path, examples)
    return read_suite(path)


def _one_a_language() -> Iterator[Example]:
    """The first held-out question of each language."""
    wanted = list(LANGUAGES)
    for example in glossary.held_out(len(glossary.facts()), 1):
        if example.language in wanted:
            wanted.remove(example.language)
            yield example


@pytest.fixture(scope="module")
def evaluations(sample: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Evaluation]:
    """Evaluations of transformers' model and of two artifacts."""
    subject = CheckpointSubject(str(TRAINED), 1, pictures=False)
    found = {"transformers": evaluate(subject, sample, sample.questions, None)}
    for weights in LEAST_RIGHT:
        folder: Path = tmp_path_factory.mktemp("artifact") / weights
        export_checkpoint(TRAINED, folder, ExportOptions(weights=weights))
        found[weights] = evaluate(ArtifactSubject(folder, SETTINGS), sample, sample.questions, None)
    settings = replace(SETTINGS, kernels=Kernels.ONNXRUNTIME)
    found["int4, onnxruntime"] = evaluate(ArtifactSubject(folder, settings), sample, sample.questions, None)
    return found


@pytest.mark.parametrize("weights", LEAST_RIGHT)
def test_its_answers_are_right_as_often_as_they_were(evaluations: dict[str, Evaluation], weights: str) -> None:
    outcomes = evaluations[weights].outcomes
    right = Counter(outcome.question.task for outcome in outcomes if outcome.right)
    assert all(right[task] >= least for task, least in LEAST_RIGHT[weights].items()), right


def test_native_kernels_answer_as_often_rightly_as_those_of_onnx_runtime(
    evaluations: dict[str, Evaluation], library: NativeLibrary
) -> None:
    ours, theirs = (evaluations[name].outcomes for name in ("int4", "int4, onnxruntime"))
    assert sum(outcome.right for outcome in ours) >= sum(outcome.right for outcome in theirs) - 1
    assert sum(one.answer != other.answer for one, other in zip(ours, theirs, strict=True)) <= len(ours) // 20


def test_in_float32_its_answers_are_those_of_transformers_token_for_token(evaluations: dict[str, Evaluation]) -> None:
    ours, theirs = evaluations["fp32"].outcomes, evaluations["transformers"].outcomes
    assert len(ours) == len(LANGUAGES) + NUM_TOOLS + NUM_RETRIEVAL + 1
    for one, other in zip(ours, theirs, strict=True):
        assert one.answer == other.answer
        assert one.scored is not None
        assert other.scored is not None
        np.testing.assert_allclose(one.scored.surprise, other.scored.surprise, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(one.scored.expert_counts, other.scored.expert_counts)


def test_its_draft_head_has_learnt_and_its_experts_are_used(evaluations: dict[str, Evaluation]) -> None:
    report = evaluations["transformers"].report
    assert report.mtp is not None
    assert (report.mtp.acceptance or 0) >= LEAST_ACCEPTANCE
    assert report.experts is not None
    assert min(layer.entropy_share for layer in report.experts.layers) >= LEAST_ENTROPY


def test_transformers_sees_in_pictures_what_they_show(tmp_path: Path) -> None:
    path = tmp_path / "pictures.jsonl"
    write_suite(path, pictures.held_out(NUM_PICTURES, 1))
    suite = read_suite(path)
    report = evaluate(CheckpointSubject(str(TRAINED), 1, pictures=True), suite, suite.questions, None).report
    assert not report.skipped
    assert report.total is not None
    assert report.total.num_right >= LEAST_PICTURES
