"""What TensorRT is asked to run, and what a machine without a GPU says; tests/cuda_standin/ has the rest."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from qwonnx.runtime.artifact.compiled import CompiledFolder, compiled_folders
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.cuda.tensorrt import tensorrt_version
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.model.artifact_placement import place_artifact
from qwonnx.runtime.model.tensorrt import check_artifact, why_unfit
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.artifact.compiled_models import IDENTITY, LIMITS, add_compiled, changed, portable

pytestmark = pytest.mark.fast


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return portable(tmp_path / "artifact")


def test_a_dense_portable_artifact_of_floats_can_be_compiled(artifact: Artifact) -> None:
    check_artifact(artifact.manifest)
    check_artifact(changed(artifact))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "cpu"}, r"is for the target cpu: it knows standard operators.*--target portable --weights fp32"),
        ({"target": "cuda"}, r"is for the target cuda: .* no contributed ones"),
        ({"target": "rtx"}, r"is for the target rtx: .* no contributed ones"),
        ({"num_experts": 4}, r"has experts.*--target cuda"),
        ({"storage": "int4"}, r"has int4: it has no operators on bits.*--weights fp32"),
        ({"kv": "int8"}, r"has keys of int8: it has no operators on bits"),
    ],
)
def test_other_artifacts_are_refused_in_one_line(artifact: Artifact, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as raised:
        check_artifact(changed(artifact, **fields))
    assert "\n" not in str(raised.value)


def test_a_compiled_model_is_for_one_machine_and_for_steps_up_to_its_size(artifact: Artifact) -> None:
    add_compiled(artifact)
    (folder,) = compiled_folders(artifact)
    assert why_unfit(folder, IDENTITY, LIMITS) == ""
    assert why_unfit(folder, IDENTITY, replace(LIMITS, max_num_seqs=1)) == ""
    for other in ({"gpu": "NVIDIA A10"}, {"compute_capability": "8.6"}, {"tensorrt": "10.9.0"}, {"onnxruntime": "1"}):
        assert "it is for another machine" in why_unfit(folder, replace(IDENTITY, **other), LIMITS)
    assert "steps are too large" in why_unfit(folder, IDENTITY, replace(LIMITS, max_model_len=4097))
    assert why_unfit(CompiledFolder(folder.path, None, "it is broken"), IDENTITY, LIMITS) == "it is broken"


def test_a_portable_artifact_without_compiled_models_runs_on_the_cpu(artifact: Artifact) -> None:
    assert place_artifact(artifact, RuntimeSettings(), 64).device is None


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it has CUDA")
def test_without_the_provider_nothing_runs_on_the_cpu_instead(artifact: Artifact) -> None:
    lacks = r"TensorRT would run .*the installed package onnxruntime lacks it.*--extras gpu.*, or give device cpu"
    with pytest.raises(SettingsError, match=lacks):
        place_artifact(artifact, RuntimeSettings(device="tensorrt:1"), 64)
    add_compiled(artifact)
    with pytest.raises(SettingsError, match=lacks):
        place_artifact(artifact, RuntimeSettings(), 64)
    assert place_artifact(artifact, RuntimeSettings(device="cpu"), 64).device is None


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, mode: int = 0) -> ctypes.CDLL:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(SettingsError, match=r"libnvinfer.so.10: cannot open.*install TensorRT 10") as raised:
        tensorrt_version()
    assert "\n" not in str(raised.value)
