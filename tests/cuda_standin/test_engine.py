"""The engine on a device: where everything lies, what is copied, and which steps are replayed. Values are rubbish."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.runtime.artifact.manifest import read_manifest
from qwonnx.runtime.cuda.device import CopyKind, CudaDevice
from qwonnx.runtime.engine.engine import Engine
from qwonnx.runtime.engine.request import FinishReason
from qwonnx.runtime.errors import SessionError, SettingsError
from qwonnx.runtime.model.placement import check_device, place
from qwonnx.runtime.sampling.params import SamplingParams
from qwonnx.runtime.settings import RuntimeSettings
from tests.cuda_standin.stand_in import EventKind, StandIn
from tests.runtime.engine.engine_driver import Received, drive

CHECKPOINT = Path(__file__).parent.parent / "miniature" / "checkpoint"
SETTINGS = RuntimeSettings(max_num_seqs=3, max_num_batched_tokens=4, max_model_len=64)
PARAMS = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
LOGITS_BYTES, TOP_BYTES = 4 * 6144, 128 * (4 + 8)  # of a row: all, and the largest with their tokens


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained miniature, exported for CUDA."""
    folder = tmp_path_factory.mktemp("cuda") / "artifact"
    export_checkpoint(CHECKPOINT, folder, ExportOptions(target="cuda", recipe=Recipe.preset("int4", 32)))
    return folder


def test_steps_of_one_token_are_replayed_and_prompts_are_not(artifact: Path, standin: StandIn) -> None:
    with Engine.open(artifact, SETTINGS) as engine:
        with standin.recording() as recording:
            engine.capture()
        assert len(recording.of(EventKind.CAPTURE_END)) == SETTINGS.max_num_seqs
        assert not [event for event in recording.captured() if event.kind is EventKind.COPY]
        received = [Received() for _ in range(3)]
        for each in received:
            engine.submit([70, 71, 72, 73, 74], PARAMS, each)
        replays = eager = 0
        while engine.num_live_requests:
            before = [len(each.tokens) for each in received]
            with standin.recording() as recording:
                engine.step()
            assert engine.check() == []
            assert not recording.of(EventKind.REFUSAL)
            assert not recording.of(EventKind.CAPTURE_BEGIN)
            graphs = recording.of(EventKind.GRAPH_LAUNCH)
            replays += len(graphs)
            eager += bool(recording.launches())
            assert len(graphs) + bool(recording.launches()) == 1
            back = [event for event in recording.of(EventKind.COPY) if event.copy_kind == CopyKind.TO_HOST]
            sampled = sum(len(each.tokens) - old for each, old in zip(received, before, strict=True))
            if sampled and not any(len(each.outputs) == 1 for each in received):
                whole = [event for event in back if event.num_bytes == LOGITS_BYTES]
                assert len(whole) <= sampled  # of rows whose largest do not decide: what they are is rubbish here
                assert sum(event.num_bytes for event in back) == sampled * TOP_BYTES + len(whole) * LOGITS_BYTES
        assert [each.outputs[-1].error for each in received] == [None] * 3
        assert [each.reason for each in received] == [FinishReason.LENGTH] * 3
        assert replays >= 5
        assert eager >= 2


def test_a_step_between_two_graphs_fills_up_with_free_rows_alone(artifact: Path, standin: StandIn) -> None:
    settings = replace(SETTINGS, max_num_seqs=17, max_num_batched_tokens=64)
    with Engine.open(artifact, settings) as engine:
        with standin.recording() as recording:
            engine.capture()
        assert len(recording.of(EventKind.CAPTURE_END)) == 8 + 2  # 1 to 8, 16, 17
        received = [Received() for _ in range(11)]
        for index, each in enumerate(received):
            engine.submit([70 + index, 71], replace(PARAMS, max_tokens=8), each)
        while not all(len(each.tokens) > 1 for each in received):
            engine.step()
        with standin.recording() as recording:
            engine.step()
        assert len(recording.of(EventKind.GRAPH_LAUNCH)) == 1
        back = [event.num_bytes for event in recording.of(EventKind.COPY) if event.copy_kind == CopyKind.TO_HOST]
        assert sum(size for size in back if size != LOGITS_BYTES) == 16 * TOP_BYTES
        drive(engine)


@pytest.fixture(scope="module")
def bfloat16_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bfloat16") / "artifact"
    options = ExportOptions(target="cuda", recipe=Recipe.preset("int4", 32), activations="bfloat16", kv="fp8")
    export_checkpoint(CHECKPOINT, folder, options)
    return folder


@pytest.mark.parametrize("activations", ["float16", "bfloat16"])
def test_a_snapshot_comes_back_and_a_request_goes_on_from_it(
    artifact: Path, bfloat16_artifact: Path, activations: str
) -> None:
    with Engine.open(artifact if activations == "float16" else bfloat16_artifact, SETTINGS) as engine:
        engine.capture()
        prompt = [70, 71, 72, 73, 74, 75, 76, 77]
        engine.submit(prompt, PARAMS, Received(), snapshot_at=[5])
        drive(engine)
        assert engine.save_capsule(prompt) is not None
        engine.submit(prompt, PARAMS, Received())
        drive(engine)
        assert engine.metrics().cached_tokens == 5


def test_too_little_memory_is_said_before_anything_runs(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(num_bytes: int) -> None:
        """So much beside what other tests hold."""
        memory = CudaDevice().memory()
        total = memory.total_bytes - memory.free_bytes + num_bytes
        monkeypatch.setenv("CUDA_STANDIN_MEMORY_BYTES", str(total))

    gc.collect()
    leave(5_000_000)
    with pytest.raises(SettingsError, match=r"cuda:0 has 5\.00 MB of memory free and the weights take 9\.\d+ MB"):
        Engine.open(artifact, SETTINGS)
    leave(20 << 20)
    with pytest.raises(SettingsError, match=r"64 sequences of 64 tokens, and a spare row, take \d+ bytes of"):
        Engine.open(artifact, replace(SETTINGS, max_num_seqs=64))
    leave(32 << 20)
    with Engine.open(artifact, replace(SETTINGS, max_model_len=None)) as engine:
        assert 2 <= engine.max_model_len < 32_768


def test_too_little_memory_for_a_step_is_said_with_the_remedy(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    settings = replace(SETTINGS, max_num_batched_tokens=2048, max_model_len=2048, max_num_seqs=1)
    with Engine.open(artifact, settings) as engine:
        memory = CudaDevice().memory()
        monkeypatch.setenv("CUDA_STANDIN_MEMORY_BYTES", str(memory.total_bytes - memory.free_bytes + 100_000))
        with pytest.raises(SessionError, match=r"the device has too little memory .* give less cache_bytes") as raised:
            engine.capture()
        assert "\n" not in str(raised.value)


def test_a_device_that_is_too_old_for_the_artifact_is_said_before_anything_loads(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_STANDIN_COMPUTE_CAPABILITY", "75")
    said = (
        r"cuda:0 \(stand-in\) has compute capability 7\.5 and its kernel for experts wants 8\.0: choose a newer device"
    )
    with pytest.raises(SettingsError, match=said):
        Engine.open(artifact, SETTINGS)
    manifest = read_manifest(artifact)
    dense = replace(manifest, model=replace(manifest.model, num_experts=0))
    check_device(CudaDevice(), dense)
    for kv, activations, what in (
        ("int8", "float16", "its attention for a cache of int8 wants 8.0"),
        ("bfloat16", "bfloat16", "its kernel for bfloat16 wants 8.0"),
    ):
        stored = replace(manifest.quantization, kv=kv, activations=activations)
        with pytest.raises(SettingsError, match=what):
            check_device(CudaDevice(), replace(dense, quantization=stored))
    monkeypatch.setenv("CUDA_STANDIN_COMPUTE_CAPABILITY", "70")
    with pytest.raises(SettingsError, match=r"has compute capability 7\.0 and this onnxruntime-gpu wants 7\.5"):
        check_device(CudaDevice(), dense)


@pytest.mark.parametrize("missing", ["libcuda.so.1", "libcublas.so.13", "libcurand.so.10"])
def test_a_library_that_is_not_there_is_named_and_nothing_runs(artifact: Path, tmp_path: Path, missing: str) -> None:
    libraries = Path(os.environ["LD_LIBRARY_PATH"].split(os.pathsep)[0])
    without = shutil.copytree(libraries, tmp_path / "libraries")
    (without / missing).unlink()
    command = "from qwonnx.handlers.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "generate", str(artifact), "--prompt", "hi"],
        env=os.environ | {"LD_LIBRARY_PATH": str(without)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert missing in line


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_device_is_found_by_its_name(artifact: Path, device: str) -> None:
    placement = place("cuda", replace(SETTINGS, device=device))
    assert placement.device is not None
    assert placement.device.index == 0
    assert placement.first == "CUDAExecutionProvider"


@pytest.mark.parametrize(
    ("target", "device", "message"),
    [
        ("cuda", "cpu", r"device is cpu and this artifact is for the target cuda: give device cuda"),
        ("cpu", "cuda", r"device is cuda and this artifact is for the target cpu: export .* --target cuda"),
        ("cuda", "cuda:3", r"device cuda:3 does not exist: there is one, cuda:0"),
    ],
)
def test_a_device_that_does_not_fit_the_artifact_is_one_line(target: str, device: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as raised:
        place(target, replace(SETTINGS, device=device))
    assert "\n" not in str(raised.value)


def test_a_thread_of_its_own_uses_the_same_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_STANDIN_DEVICES", "2")
    device = place("cuda", replace(SETTINGS, device="cuda:1")).device
    assert device is not None
    found: list[int] = []

    def use() -> None:
        memory = device.allocate(16)
        found.append(device.current())
        del memory

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [1]
