"""Portable artifacts on a device: CUDA's kernels in TensorRT's place, and how far a build comes without TensorRT."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import onnxruntime
import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.runtime.artifact.compiled import EngineIdentity, StepLimits
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.cuda.device import CudaDevice
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.errors import SessionError
from qwonnx.runtime.model.artifact_placement import place_artifact
from qwonnx.runtime.model.placement import CUDA, TENSORRT
from qwonnx.runtime.model.session import Session
from qwonnx.runtime.model.tensorrt import engine_identity, step_limits
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.checkpoints.tiny import write_tiny
from tests.cuda_standin.stand_in import EventKind, StandIn
from tests.runtime.artifact.compiled_models import add_compiled, portable
from tests.runtime.engine.engine_driver import Received, drive

SETTINGS = RuntimeSettings(device="tensorrt", max_num_seqs=2, max_num_batched_tokens=4, max_model_len=64)
PARAMS = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
# The stand-in ends a process that asks for an object of TensorRT.
ASKED_FOR_TENSORRT = 78


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "checkpoint"
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    return write_tiny(folder, architecture="Qwen3_5ForCausalLM", text_overrides=layers)


@pytest.fixture(scope="module")
def dense(checkpoint: Path) -> Path:
    """A dense model of floats for the target portable."""
    folder = checkpoint.parent / "artifact"
    export_checkpoint(checkpoint, folder, ExportOptions(target="portable", recipe=Recipe.preset("fp32", 0)))
    return folder


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return portable(tmp_path / "artifact")


@pytest.fixture
def identity() -> EngineIdentity:
    return engine_identity(CudaDevice())


def test_without_a_compiled_model_cuda_runs_the_graph_and_says_so(
    dense: Path, standin: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Engine.open(dense, SETTINGS) as engine:
        (note,) = (record.message for record in caplog.records if "compiled" in record.message)
        assert "no compiled model fits this machine (there is none), so CUDA runs the graph without TensorRT" in note
        received = [Received(), Received()]
        for each in received:
            engine.submit([70, 71, 72, 73, 74], PARAMS, each)
        with standin.recording() as recording:
            drive(engine)
        assert [each.outputs[-1].error for each in received] == [None] * 2
        assert not recording.of(EventKind.REFUSAL)
        assert recording.launches()


def test_codes_would_be_computed_on_the_cpu_and_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    export_checkpoint(checkpoint, folder, ExportOptions(target="portable", recipe=Recipe.preset("int8", 32)))
    with pytest.raises(SessionError, match=r"no kernel for BitShift, BitwiseAnd .* the CPU would compute it"):
        Engine.open(folder, replace(SETTINGS, device="cuda"))


def test_the_compiled_model_of_this_gpu_runs_on_tensorrt(artifact: Artifact, identity: EngineIdentity) -> None:
    assert identity == EngineIdentity("stand-in", "9.0", "10.13.0", onnxruntime.__version__)
    folder = add_compiled(artifact, identity, step_limits(SETTINGS, 64))
    for device in ("auto", "tensorrt", "tensorrt:0"):
        placement = place_artifact(artifact, replace(SETTINGS, device=device), 64)
        assert list(placement.providers) == [TENSORRT, CUDA]
        assert placement.graph == folder / "decoder.onnx"
        assert not placement.in_place
        assert not placement.note


def test_a_model_that_does_not_fit_is_named_with_the_reason(artifact: Artifact, identity: EngineIdentity) -> None:
    add_compiled(artifact, replace(identity, gpu="NVIDIA L4", compute_capability="8.9"))
    small = add_compiled(artifact, identity, StepLimits(1, 4, 64))
    placement = place_artifact(artifact, SETTINGS, 64)
    assert list(placement.providers) == [CUDA]
    assert "gpu NVIDIA L4 (here stand-in), compute_capability 8.9 (here 9.0)" in placement.note
    assert "max_num_seqs 2 (compiled for 1)" in placement.note
    assert f"run qwonnx compile {artifact.folder} here" in placement.note
    assert "\n" not in placement.note
    (small / "decoder.engine").write_bytes(b"damage")
    placement = place_artifact(artifact, replace(SETTINGS, max_num_seqs=1), 64)
    assert placement.graph is None
    assert "decoder.engine in" in placement.note


def test_an_engine_that_is_none_is_an_error_and_never_a_run_on_the_cpu(
    artifact: Artifact, identity: EngineIdentity
) -> None:
    """TensorRT itself is not there: the process ends where it is asked for, and not in a session on the CPU."""
    add_compiled(artifact, identity, step_limits(SETTINGS, 64), (artifact.folder / "decoder.onnx").read_bytes())
    open_it = f"""
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.settings import RuntimeSettings
Engine.open({str(artifact.folder)!r}, RuntimeSettings(max_num_seqs=2, max_num_batched_tokens=4, max_model_len=64))
"""
    done = subprocess.run([sys.executable, "-c", open_it], capture_output=True, text=True, check=False)
    assert done.returncode == ASKED_FOR_TENSORRT, done.stderr
    assert "asked for TensorRT's runtime" in done.stderr


def test_the_provider_takes_all_options_of_a_build(dense: Path, tmp_path: Path) -> None:
    """It checks names and values before it asks for TensorRT."""
    command = "from qwonnx.handlers.cli.main import main; main()"
    words = ["compile", str(dense), str(tmp_path / "out"), "--max-num-seqs", "2", "--max-model-len", "64"]
    done = subprocess.run([sys.executable, "-c", command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == ASKED_FOR_TENSORRT, done.stderr
    assert "building an engine for stand-in with TensorRT 10.13.0" in done.stdout


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("trt_no_such_option", "1", "Invalid TensorRT EP option"), ("trt_engine_cache_enable", "1", "'True' or 'False'")],
)
def test_an_option_that_the_provider_does_not_take_is_an_error(
    dense: Path, name: str, value: str, message: str
) -> None:
    graph = open_artifact(dense).folder / "decoder.onnx"
    placed = place_artifact(open_artifact(dense), SETTINGS, 64)
    placement = msgspec.structs.replace(placed, providers={TENSORRT: {name: value}})
    with pytest.raises(SessionError, match=message):
        Session(graph, SETTINGS, placement=placement)
