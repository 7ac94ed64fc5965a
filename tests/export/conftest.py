"""Fixtures of the export's tests: the tiny checkpoint, exported every way that a test asks for, each once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.artifact import Artifact, open_artifact
from tests.export.dequantized import write_dequantized


@pytest.fixture(scope="session")
def export_tiny(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[ExportOptions], Artifact]:
    """The tiny checkpoint's artifact under given options."""
    made: dict[ExportOptions, Artifact] = {}

    def export(options: ExportOptions) -> Artifact:
        if options not in made:
            out = tmp_path_factory.mktemp("artifact") / f"{options.target}-{options.weights}"
            export_checkpoint(tiny_checkpoint, out, options)
            made[options] = open_artifact(out, verify=True)
        return made[options]

    return export


@pytest.fixture(scope="session")
def tiny_fp32(export_tiny: Callable[[ExportOptions], Artifact]) -> Artifact:
    return export_tiny(ExportOptions(weights="fp32"))


@pytest.fixture(scope="session")
def dequantized_tiny(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A copy of the tiny checkpoint whose weights went through a preset's quantisation and back, stored in float32."""
    made: dict[str, Path] = {}

    def dequantize(weights: str) -> Path:
        if weights not in made:
            made[weights] = write_dequantized(tiny_checkpoint, tmp_path_factory.mktemp("dequantized"), weights)
        return made[weights]

    return dequantize
