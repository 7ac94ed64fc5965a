"""An artifact for CUDA where CUDA is not: each command says so in one line, and none runs it on the CPU."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from qwonnx.export.quantization.recipe import Recipe
from qwonnx.runtime.artifact.manifest import read_manifest
from tests.handlers.cli.commands import error_line, qwonnx

CHECKPOINT = Path(__file__).parents[2] / "miniature" / "checkpoint"

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA"
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cuda") / "artifact"
    result = qwonnx("export", CHECKPOINT, out, "--target", "cuda")
    assert result.returncode == 0, result.stderr
    return out


@pytest.mark.parametrize(
    "command",
    [("serve", "--port", "0"), ("generate", "--prompt", "hi"), ("bake", "{prompt}"), ("inspect", "--nodes")],
)
def test_without_cuda_nothing_runs(artifact: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "prompt.txt").write_text("Be brief.")
    name, *rest = (part.format(prompt=tmp_path / "prompt.txt") for part in command)
    line = error_line(qwonnx(name, artifact, *rest))
    assert "CUDA would run this artifact, and the installed package onnxruntime lacks it" in line
    assert "--extras gpu" in line


def test_what_reads_graphs_on_the_cpu_says_so(artifact: Path) -> None:
    line = error_line(qwonnx("verify", artifact, "--against", CHECKPOINT))
    assert "is for CUDA and this command reads graphs on the CPU" in line


def test_another_device_is_refused(artifact: Path) -> None:
    for line in (
        error_line(qwonnx("serve", artifact, "--port", "0", QWONNX_DEVICE="cpu")),
        error_line(qwonnx("serve", artifact, "--port", "0", "--device", "cpu")),
        error_line(qwonnx("generate", artifact, "--prompt", "hi", "--device", "cpu")),
    ):
        assert "device is cpu and this artifact is for the target cuda" in line
    assert "device is 'gpu': give auto, cpu, cuda" in error_line(qwonnx("serve", artifact, "--device", "gpu"))


def test_its_recipe_is_the_targets_own(artifact: Path) -> None:
    recipe, used = Recipe.named("cuda"), read_manifest(artifact).quantization
    assert used.weight_block_size == recipe.weight_block_size
    assert used.recipe == tuple((rule.pattern, rule.bits) for rule in recipe.rules)


def test_its_files_can_be_inspected(artifact: Path) -> None:
    result = qwonnx("inspect", artifact)
    assert result.returncode == 0
    assert "cuda" in result.stdout
