"""`qwonnx compile` where TensorRT is not: one line and exit status 2, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from tests.handlers.cli.commands import error_line, qwonnx
from tests.runtime.artifact.compiled_models import add_compiled, portable
from tests.runtime.counting_model import make

pytestmark = pytest.mark.skipif(
    "TensorrtExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has TensorRT"
)


def test_an_artifact_of_another_target_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "artifact")
    line = error_line(qwonnx("compile", tmp_path / "artifact", "--provider", "tensorrt"))
    assert "is for the target cpu: it knows standard operators, and no contributed ones" in line
    assert "--target portable --weights fp32" in line


def test_without_the_provider_nothing_is_written(tmp_path: Path) -> None:
    artifact = portable(tmp_path / "artifact")
    line = error_line(qwonnx("compile", artifact.folder, tmp_path / "out"))
    assert "TensorRT would run this artifact, and the installed package onnxruntime lacks it" in line
    assert not (tmp_path / "out").exists()
    assert not (artifact.folder / "compiled").exists()


def test_a_folder_that_exists_is_not_written_over(tmp_path: Path) -> None:
    artifact = portable(tmp_path / "artifact")
    assert "exists: name another folder" in error_line(qwonnx("compile", artifact.folder, tmp_path))


def test_inspect_lists_compiled_models_and_why_one_is_not_used(tmp_path: Path) -> None:
    artifact = portable(tmp_path / "artifact")
    add_compiled(artifact)
    (artifact.folder / "compiled" / ("0" * 16)).mkdir()
    shown = qwonnx("inspect", artifact.folder)
    assert shown.returncode == 0, shown.stderr
    assert "NVIDIA L4 (8.9), TensorRT 10.13.0" in shown.stdout
    assert "8 sequences of 4096, chunks of 512" in shown.stdout
    assert "not used: its compiled.json" in shown.stdout
