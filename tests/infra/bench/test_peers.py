"""The comparison's arithmetic, and the models that it makes."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import pytest

from infra.bench import peers
from qwonnx.runtime.artifact.folder import open_artifact


def test_a_missing_artifact_is_exported_and_opens(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "genai-int4").mkdir()  # the peer's export is there already
    models = peers.make_models(argparse.Namespace(work=tmp_path, checkpoint=tiny_checkpoint, tuned_peer=False))
    assert open_artifact(models["qwonnx"])
    assert models["genai"] == models["genai-default"] == tmp_path / "genai-int4"


def test_a_program_that_makes_nothing_or_fails_is_not_taken_for_success(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        peers.make_once(tmp_path / "model", ["python", "-c", "pass"])
    with pytest.raises(subprocess.CalledProcessError):
        peers.make_once(tmp_path / "model", ["python", "-c", "import os, sys; os.mkdir(sys.argv[1]); sys.exit(1)"])
    assert not (tmp_path / "model").exists()


def test_ratios_are_of_the_runs_of_one_round() -> None:
    runs = {
        "qwonnx": [{"prompt": 400.0, "decode": 100.0}, {"prompt": 200.0, "decode": 50.0}],
        "genai": [{"prompt": 100.0, "decode": 50.0}, {"prompt": 50.0, "decode": 10.0}],
        "genai-default": [{"prompt": 100.0, "decode": 50.0}, {"prompt": 200.0, "decode": 50.0}],
    }
    summary = peers.ratios(runs)
    assert summary["prompt_tokens_per_s"] == {"qwonnx": 300.0, "genai": 75.0, "genai-default": 150.0}
    assert summary["prompt_ratio_to_genai"] == {"median": 4.0, "lowest": 4.0, "highest": 4.0}
    assert summary["decode_ratio_to_genai"] == {"median": 3.5, "lowest": 2.0, "highest": 5.0}
