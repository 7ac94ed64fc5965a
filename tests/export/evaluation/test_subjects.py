"""A checkpoint and its artifact are the same model: they give the same answers and the same scores.

The expected answers are those of transformers, so the right verdicts are known.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.artifact_subject import ArtifactSubject
from qwonnx.export.evaluation.checkpoint_subject import CheckpointSubject
from qwonnx.export.evaluation.reference_model import load_reference_model, quiet_transformers
from qwonnx.export.evaluation.run import Evaluation, Text, evaluate
from qwonnx.export.evaluation.suite import read_suite
from qwonnx.export.evaluation.verify import artifact_logits
from qwonnx.runtime.artifact.folder import open_artifact
from qwonnx.runtime.settings import RuntimeSettings
from qwonnx.runtime.text.chat_template import ChatTemplate
from qwonnx.runtime.text.tokenizer import Tokenizer
from tests.checkpoints import chat_template, write_tiny
from tests.checkpoints.config_json import TINY_MOE
from tests.handlers.cli.commands import QWONNX, qwonnx

SETTINGS = RuntimeSettings(num_threads=1, max_num_seqs=3)
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
TEXT = "The lighthouse keeper wrote down the weather every morning. " * 24
NUM_GENERATED = 5
pytestmark = pytest.mark.usefixtures("one_thread")

TWO_LAYERS = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}


@dataclass(frozen=True, slots=True)
class Models:
    """A checkpoint, its float32 artifact, and questions that both must answer as the suite says, or not."""

    checkpoint: Path
    artifact: Path
    suite: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("models")
    checkpoint = write_tiny(root / "checkpoint", mtp=True, text_overrides=TWO_LAYERS)
    tokenizer = Tokenizer.from_file(checkpoint / "tokenizer.json")
    prompts = [
        {"messages": [{"role": "user", "content": f"What of {number}?"}], "thinking": number % 3 == 2}
        for number in range(40)
    ]
    written = list(_continuations(checkpoint, tokenizer, prompts))
    # An untrained model ends no answer: let it end with tokens that it says after four others.
    ends = {tokens[4] for tokens in written if _is_text(tokenizer.decode(tokens[:4]))}
    path = checkpoint / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "eos_token_id": [*config["eos_token_id"], *sorted(ends)]}), encoding="utf-8")
    lines = []
    for index, (prompt, tokens) in enumerate(zip(prompts, written, strict=True)):
        end = next((place for place, token in enumerate(tokens) if token in ends), 0)
        text = tokenizer.decode(tokens[:end])
        if _is_text(text):
            right = {"reasoning_content": text} if prompt["thinking"] else {"content": text}
            lines.append({"task": "kept", "expected": right, "language": f"number {index % 2}", **prompt})
            lines.append({"task": "altered", "expected": {"content": f"{text} and more"}, **prompt})
    assert len(lines) >= 12
    content = [PICTURE, {"type": "text", "text": "What is it?"}]
    lines.append({"task": "pictures", "messages": [{"role": "user", "content": content}], "expected": {"content": "x"}})
    suite = root / "suite.jsonl"
    suite.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    export_checkpoint(checkpoint, root / "artifact", ExportOptions(weights="fp32"))
    return Models(checkpoint, root / "artifact", suite)


def _is_text(text: str) -> bool:
    """Whether a text is not empty, has only complete characters, and nothing that may be a tag."""
    return bool(text.strip()) and not {"\ufffd", "<"} & set(text)


def _continuations(checkpoint: Path, tokenizer: Tokenizer, prompts: list[dict[str, Any]]) -> Iterator[list[int]]:
    """Greedy continuations; the whole sequence is read again for every token."""
    template = ChatTemplate(chat_template())
    with quiet_transformers():
        model = load_reference_model(checkpoint)
    for prompt in prompts:
        rendered = template.render(prompt["messages"], enable_thinking=prompt["thinking"])
        ids = tokenizer.encode(rendered)
        start = len(ids)
        with torch.no_grad():
            for _ in range(NUM_GENERATED):
                logits = model(torch.tensor([ids]), use_cache=False, logits_to_keep=1).logits[0, -1]
                ids.append(int(logits[: tokenizer.num_tokens].argmax()))
        yield ids[start:]


@pytest.fixture(scope="module")
def of_artifact(models: Models) -> Evaluation:
    suite = read_suite(models.suite)
    return evaluate(ArtifactSubject(models.artifact, SETTINGS), suite, suite.questions, Text("text", TEXT))


@pytest.fixture(scope="module")
def of_checkpoint(models: Models) -> Evaluation:
    suite = read_suite(models.suite)
    subject = CheckpointSubject(str(models.checkpoint), None, pictures=True)
    return evaluate(subject, suite, suite.questions, Text("text", TEXT))


@pytest.mark.parametrize("subject", ["of_artifact", "of_checkpoint"])
def test_what_the_model_says_is_right_and_all_else_wrong(subject: str, request: pytest.FixtureRequest) -> None:
    report = request.getfixturevalue(subject).report
    exact = {(one.task, one.thinking): one.score.exact for one in report.tasks}
    assert exact == {
        ("kept", False): 1, ("kept", True): 1, ("altered", False): 0, ("altered", True): 0, ("pictures", False): None,
    }  # fmt: skip
    assert report.total.num_cut_off == 0
    assert {one.language: one.score.exact for one in report.languages} == {"number 0": 1, "number 1": 1}
    assert [(one.num_questions, one.reason.startswith("with pictures: ")) for one in report.skipped] == [(1, True)]


def test_both_agree_on_every_answer_and_every_score(of_artifact: Evaluation, of_checkpoint: Evaluation) -> None:
    assert of_artifact.report.total is not None
    assert of_artifact.report.total.num_tokens > 40
    for ours, theirs in zip(of_artifact.outcomes, of_checkpoint.outcomes, strict=True):
        assert (ours.answer, ours.right) == (theirs.answer, theirs.right)
        if ours.scored is None or theirs.scored is None:
            assert ours.question.task == "pictures"
            continue
        np.testing.assert_allclose(ours.scored.surprise, theirs.scored.surprise, atol=1e-4)
        np.testing.assert_array_equal(ours.scored.hits, theirs.scored.hits)
        assert ours.scored.expert_counts is not None
        np.testing.assert_array_equal(ours.scored.expert_counts, theirs.scored.expert_counts)
        chosen = TINY_MOE["num_experts_per_tok"] * len(ours.scored.surprise)
        assert (ours.scored.expert_counts.sum(-1) == chosen).all()
        assert ours.scored.expert_counts.shape == (2, TINY_MOE["num_experts"])
    for one, other in zip(of_artifact.report.tasks, of_checkpoint.report.tasks, strict=True):
        if one.task != "pictures":
            assert one.score.perplexity == pytest.approx(other.score.perplexity, rel=1e-3)
    assert of_artifact.report.experts == of_checkpoint.report.experts


def test_expected_answers_that_the_model_writes_are_likelier(of_artifact: Evaluation) -> None:
    score = {(one.task, one.thinking): one.score for one in of_artifact.report.tasks}
    kept, altered = score["kept", False], score["altered", False]
    assert kept.perplexity is not None
    assert altered.perplexity is not None
    assert kept.perplexity < altered.perplexity
    # Its text has other tokens than it wrote, and ends with <|im_end|>, which it did not write.
    assert 0 < (kept.likeliest or 0) < 1


def test_the_perplexity_of_a_text_is_that_of_its_logits(
    models: Models, of_artifact: Evaluation, of_checkpoint: Evaluation
) -> None:
    artifact = open_artifact(models.artifact)
    tokenizer = Tokenizer.from_file(models.artifact / "tokenizer.json")
    ids = np.array(tokenizer.encode(TEXT))
    assert 256 < len(ids) <= 1024, "one window of several chunks"
    logits = artifact_logits(artifact, ids)[:-1, : tokenizer.num_tokens].astype(np.float64)
    surprise = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    for report in (of_artifact.report, of_checkpoint.report):
        assert report.text is not None
        assert report.text.num_tokens == len(ids) - 1
        assert report.text.perplexity == pytest.approx(np.exp(surprise.mean()), rel=1e-4)


def test_a_draft_head_is_measured_in_the_checkpoint_alone(of_artifact: Evaluation, of_checkpoint: Evaluation) -> None:
    assert of_artifact.report.mtp is None
    mtp = of_checkpoint.report.mtp
    assert mtp is not None
    scored = [one.scored for one in of_checkpoint.outcomes if one.scored is not None]
    assert mtp.num_drafted == sum(len(one.surprise) - 1 for one in scored)
    assert mtp.acceptance is not None
    assert 0 <= mtp.acceptance < 0.5  # the weights are random


def test_questions_at_once_change_nothing_in_float32(models: Models, of_artifact: Evaluation) -> None:
    suite = read_suite(models.suite)
    alone = ArtifactSubject(models.artifact, RuntimeSettings(num_threads=1, max_num_seqs=1, max_num_batched_tokens=7))
    outcomes = evaluate(alone, suite, suite.questions, None).outcomes
    assert [one.answer for one in outcomes] == [one.answer for one in of_artifact.outcomes]


def test_the_vision_tower_changes_no_answer_to_text(models: Models) -> None:
    ids = torch.arange(40)[None]
    with quiet_transformers(), torch.no_grad():
        alone = load_reference_model(models.checkpoint)(ids).logits
        whole = load_reference_model(models.checkpoint, pictures=True)(ids).logits
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)


def test_a_checkpoint_is_evaluated_by_the_command(models: Models) -> None:
    result = qwonnx("eval", models.checkpoint, "--suite", models.suite, "--limit", 3, "--threads", 1, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert (report["model"]["kind"], report["model"]["name"]) == ("checkpoint", "checkpoint")
    assert list(report["mtp"]) == ["num_drafted", "num_accepted", "acceptance"]
    assert list(report["experts"]) == ["num_experts", "num_experts_per_tok", "num_tokens", "layers"]
    assert list(report["experts"]["layers"][0]) == ["layer", "entropy_bits", "entropy_share", "least_share"]


def test_a_serving_machine_does_without_expert_usage(models: Models) -> None:
    program = f"import sys; sys.modules['onnx'] = sys.modules['torch'] = None\n{QWONNX[2]}"
    command = [
        sys.executable,
        "-c",
        program,
        "eval",
        str(models.artifact),
        "--suite",
        str(models.suite),
        "--limit",
        "2",
    ]
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["experts"] is None
    assert "expert usage is left out: onnx is not installed" in report["notes"][-1]
    assert report["total"]["num_tokens"] > 0


def test_a_dense_model_has_no_expert_usage_and_no_head(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "dense", architecture="Qwen3_5ForCausalLM", text_overrides=TWO_LAYERS)
    report = evaluate(CheckpointSubject(str(folder), None, pictures=False), None, [], Text("text", TEXT)).report
    assert (report.suite, report.total, report.tasks, report.experts, report.mtp) == (None, None, (), None, None)
    shutil.rmtree(folder)
