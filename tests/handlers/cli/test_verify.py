"""`qwonnx verify` as users run it: its tables, its JSON, and its line about float16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.evaluation.reference_model import layer_peaks, load_reference_model
from qwonnx.export.evaluation.verify import FLOAT16_LIMIT
from qwonnx.handlers.cli.command_line import command_line
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
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if "float16" in line]
    report = json.loads(result.stdout)
    assert len(report["layer_peaks"]) == 2
    assert max(report["layer_peaks"]) > FLOAT16_LIMIT
    assert f"activations reach {max(report['layer_peaks']):,.0f} after layer" in line
