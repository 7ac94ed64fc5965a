"""`qwonnx verify` as users run it: its tables, its JSON, and its line about float16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.decoder_session import DecoderSession
from qwonnx.export.evaluation.reference_model import layer_peaks, load_reference_model
from qwonnx.export.evaluation.verify import FLOAT16_LIMIT
from qwonnx.export.verification.progress import VerificationProgress
from qwonnx.export.verification.reference_layers import LayerRun, ReferenceLayers
from qwonnx.handlers.cli.command_line import command_line
from qwonnx.handlers.cli.verify_progress import VerifyLines
from tests.checkpoints import write_tiny

LAYERS = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
EMBEDDING = "model.language_model.embed_tokens.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("verify") / "checkpoint", text_overrides=LAYERS)


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> Path:
    export_checkpoint(checkpoint, checkpoint.with_name("artifact"), ExportOptions(weights="fp32"))
    return checkpoint.with_name("artifact")


def verified(artifact: Path, checkpoint: Path, *options: str) -> Result:
    """The command's result in this process, which has torch imported already."""
    arguments = ["verify", str(artifact), "--against", str(checkpoint), *options]
    return CliRunner().invoke(command_line(), arguments, env={"COLUMNS": "100"})


def test_the_largest_activation_after_each_layer_is_in_a_table(checkpoint: Path, artifact: Path) -> None:
    result = verified(artifact, checkpoint)
    assert result.exit_code == 0
    assert "layers 0 to 1" in result.stdout
    assert "float16" not in result.stderr


def test_it_is_that_of_transformers_hidden_states(checkpoint: Path) -> None:
    model = load_reference_model(checkpoint)
    with torch.no_grad(), layer_peaks(model) as peaks:
        states = model(torch.arange(40)[None], output_hidden_states=True).hidden_states
    assert len(peaks) == 2
    assert peaks[0] == float(states[1].abs().max())
    with torch.no_grad():  # nothing is recorded outside
        model(torch.arange(90)[None])
    assert peaks[0] == float(states[1].abs().max())


def test_a_line_warns_of_a_model_that_leaves_float16(checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    for file in checkpoint.iterdir():
        (wide / file.name).write_bytes(file.read_bytes())
    tensors = load_file(wide / "model.safetensors")
    tensors[EMBEDDING] *= 2**21
    save_file(tensors, wide / "model.safetensors", {"format": "pt"})
    result = verified(artifact, wide, "--json")
    assert result.exit_code == 1, "it is another model"
    (line,) = [line for line in result.stderr.splitlines() if "float16" in line]
    report = json.loads(result.stdout)
    assert len(report["layer_peaks"]) == 2
    assert max(report["layer_peaks"]) > FLOAT16_LIMIT
    assert f"activations reach {max(report['layer_peaks']):,.0f} after layer" in line


def test_the_verdict_is_the_last_line_and_in_the_report(checkpoint: Path, artifact: Path) -> None:
    shown = verified(artifact, checkpoint)
    assert shown.stdout.splitlines()[-1].startswith("equal up to rounding: logits differ by ")
    assert "Difference of each part" in shown.stdout
    report = json.loads(verified(artifact, checkpoint, "--json").stdout)
    assert report["verdict"] == "equal"
    assert [part["name"] for part in report["parts"]] == ["embedding", "layer 0", "layer 1", "head"]
    assert set(report) >= {"num_tokens", "max_logit_difference", "mean_kl", "top1_agreement", "layer_peaks", "reason"}


def test_another_model_is_said_on_both_streams_with_status_1(artifact: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path / "other", seed=1, text_overrides=LAYERS)
    result = verified(artifact, other)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("not the same model: the embedding differs by ")
    assert result.stderr.startswith("qwonnx: not the same model: the embedding differs by ")


def test_an_interrupted_verification_goes_on_where_it_was(
    checkpoint: Path, artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--work", str(tmp_path / "work"), "--memory", "500MB")
    run, indices = ReferenceLayers.run, []

    def interrupted(layers: ReferenceLayers, index: int, hidden: torch.Tensor) -> LayerRun:
        indices.append(index)
        if indices == [0, 1]:
            raise KeyboardInterrupt
        return run(layers, index, hidden)

    monkeypatch.setattr(ReferenceLayers, "run", interrupted)
    result = verified(artifact, checkpoint, *arguments)
    assert result.exit_code != 0
    assert f"interrupted; what is done is kept in {tmp_path / 'work'}: run the same command to go on" in result.stderr
    monkeypatch.setattr(DecoderSession, "__init__", None)  # the artifact is not run again
    result = verified(artifact, checkpoint, *arguments)
    assert (result.exit_code, indices) == (0, [0, 1, 1])
    assert not (tmp_path / "work").exists()


def test_progress_is_lines_without_a_terminal() -> None:
    now = 0.0
    lines = VerifyLines(lambda: now)
    assert lines.line() == "opening both models, 0 s since the start"
    lines.show(VerificationProgress("layers", 10, 60, resumed=10))
    now = 30.0
    assert lines.line() == "running the checkpoint: 10 of 60 layers"
    lines.show(VerificationProgress("layers", 20, 60, resumed=10))
    assert lines.line() == "running the checkpoint: 20 of 60 layers, 2 min left"
    lines.show(VerificationProgress("hash", 0, 10**9))
    now = 40.0
    lines.show(VerificationProgress("hash", 5 * 10**8, 10**9))
    assert lines.line() == "hashing the artifact: 500 MB of 1.00 GB, 10 s left"


def test_an_export_verifies_what_it_wrote(checkpoint: Path, tmp_path: Path) -> None:
    command = ["export", str(checkpoint), str(tmp_path / "out"), "--weights", "fp32", "--verify"]
    result = CliRunner().invoke(command_line(), command, env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("equal up to rounding: ")
    refused = CliRunner().invoke(command_line(), [*command, "--target", "cuda"])
    assert "--verify runs graphs on the CPU" in str(refused.exception)
