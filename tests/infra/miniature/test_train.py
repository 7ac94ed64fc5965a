"""Training reproduces, resumes where it stopped, and learns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from infra.miniature.checkpoint import read_weights, write_checkpoint
from infra.miniature.curves import read_log
from infra.miniature.evaluate import unknown_facts
from infra.miniature.mixture import Mixture, Proportions, Task
from infra.miniature.model import Miniature, stored_tensors
from infra.miniature.optimizer import Muon, orthogonal
from infra.miniature.train import Settings, Training
from tests.checkpoints.config_json import Json

SETTINGS = Settings(steps=4, lr=5e-3, score_every=1000, save_every=3, known_weight=1.0)
# Losses of the small model's first steps: a change that changes them also changes the trained miniature.
STORED = [34.59675, 31.99067, 56.36723]


def training(tokenizer: Tokenizer, config: Json, out: Path) -> Training:
    return Training(SETTINGS, tokenizer, config, out=out, proportions=Proportions(short_rows=2, long_tokens=1024))


def test_the_first_steps_have_the_losses_that_they_had(
    tokenizer: Tokenizer, probe_config: Json, tmp_path: Path
) -> None:
    run = training(tokenizer, probe_config, tmp_path)
    assert [run.train_step() for _ in STORED] == pytest.approx(STORED, rel=2e-3)


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(
    tokenizer: Tokenizer, probe_config: Json, tmp_path: Path
) -> None:
    whole = training(tokenizer, probe_config, tmp_path)
    for _ in range(2):
        whole.train_step()
    whole.save()
    tokens = whole.tokens
    expected = whole.train_step()
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": 2}) + "\n" + json.dumps({"step": 3}) + "\n")
    resumed = training(tokenizer, probe_config, tmp_path)
    resumed.resume()
    assert (resumed.step, resumed.tokens) == (2, tokens)
    assert resumed.train_step() == pytest.approx(expected, rel=1e-5)
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [2]


def test_a_whole_run_writes_the_log_the_curves_and_the_checkpoint(
    tokenizer: Tokenizer, probe_config: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.miniature.train.SCORED", 16)
    run = training(tokenizer, probe_config, tmp_path)
    run.run()
    scored = read_log(tmp_path / "log.jsonl")[-1]
    assert scored["step"] == SETTINGS.steps
    assert {"glossary", "tools", "pictures", "retrieval 2048"} <= scored["scores"].keys()
    assert "<polyline" in (tmp_path / "curves.svg").read_text()
    names = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert run.progress == 1


def test_a_training_that_starts_from_a_checkpoint_scores_it_first_and_sees_later_data(
    tokenizer: Tokenizer, probe_config: Json, rough_model: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "start", rough_model, probe_config, tokenizer)
    settings, small = replace(SETTINGS, steps=2, data_from=0.5), Proportions(short_rows=2, long_tokens=1024)
    run = Training(settings, tokenizer, probe_config, out=tmp_path, proportions=small, start=tmp_path / "start")
    start, untouched = read_weights(tmp_path / "start"), dict(stored_tensors(run.model))
    assert all(torch.equal(untouched[name], tensor.float()) for name, tensor in start.items())
    seen: list[float] = []

    def no_tasks(step: int, progress: float) -> Iterator[Task]:
        seen.append(progress)
        return iter(())

    monkeypatch.setattr("infra.miniature.train.SCORED", 16)
    monkeypatch.setattr(run.mixture, "tasks", no_tasks)
    run.run()
    assert seen == [0.5, 0.75]
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl") if "scores" in record] == [0, 2]


def test_an_untrained_model_knows_no_fact(mixture: Mixture, rough_model: Miniature) -> None:
    unknown = unknown_facts(rough_model.eval(), mixture, 100)
    assert unknown.shape == (100,)
    assert unknown.all()


def test_an_orthogonalised_matrix_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 40), (40, 24), (16, 3, 2, 4, 4)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_other_parameters_get_torchs_adam() -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    group = {"params": [ours], "muon": False}
    optimizers = (Muon([group], lr=1e-2), torch.optim.Adam([theirs], lr=1e-2, betas=(0.9, 0.98), eps=1e-12))
    for step in range(5):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = (parameter.detach() - 0.3) * (step + 1)
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
