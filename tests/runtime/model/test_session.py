from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from qwonnx.runtime.artifact.manifest import read_manifest
from qwonnx.runtime.errors import SessionError
from qwonnx.runtime.machine import cpu_quota
from qwonnx.runtime.model.session import Session, check_version
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.counting_model import CountingModel
from tests.runtime.engine.engine_driver import GREEDY, SMALL, Received, drive

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("content", "cores"),
    [("50000 100000", 1), ("100000 100000\n", 1), ("max 100000", None), ("100000000 100000", None), ("", None)],
)
def test_a_containers_quota_bounds_the_threads(tmp_path: Path, content: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(content)
    found = cpu_quota(tmp_path / "cpu.max")
    assert found in (cores, None)  # None too where the machine itself has a single core
    assert cpu_quota(tmp_path / "missing") is None


@pytest.mark.parametrize(
    ("target", "has_cuda", "remedy"),
    [
        ("cpu", False, r"installed: \S+.*--extras cpu"),
        ("cpu", True, r"with --target cuda; for the CPU, uninstall onnxruntime-gpu, and then .*--extras cpu"),
        ("cuda", True, r"installed: \S+.*--extras gpu"),
        ("cuda", False, r"uninstall onnxruntime, and then .*--extras gpu"),
    ],
)
def test_an_older_onnx_runtime_is_refused_and_a_newer_is_not(
    counting_model: CountingModel, monkeypatch: pytest.MonkeyPatch, target: str, has_cuda: bool, remedy: str
) -> None:
    manifest = replace(read_manifest(counting_model.folder), target=target)
    for fine in ("1.4", onnxruntime.__version__):
        check_version(replace(manifest, minimum_onnxruntime=fine))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"] * has_cuda)
    with pytest.raises(SessionError, match=r"needs ONNX Runtime 1\.999.*" + remedy):
        check_version(replace(manifest, minimum_onnxruntime="1.999"))


class _FailingSession:
    """ONNX Runtime's session on a device that fails."""

    def __init__(self, text: str) -> None:
        self._text = text

    def run_with_iobinding(self, binding: object, options: object) -> None:
        raise RuntimeError(self._text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("CUDA failure 209: no kernel image is available for execution on the device", r"has no machine code for this"),
        ("Failed to allocate memory for requested buffer of size 5", r"too little memory .* give less cache_bytes"),
        ("CUDA failure 2: out of memory", r"too little memory .* give less cache_bytes"),
        ("another failure", r"failed to run a step: another failure$"),
    ],
)
def test_a_device_that_fails_says_what_to_do(
    counting_model: CountingModel, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    session = Session(counting_model.folder / "decoder.onnx", SMALL)
    monkeypatch.setattr(session, "is_on_device", True)
    monkeypatch.setattr(session, "_session", _FailingSession(text))
    with pytest.raises(SessionError, match=said):
        session.run(None)


def test_threads_spinning_and_logging_follow_the_settings(counting_model: CountingModel) -> None:
    prompt = counting_model.tokenizer.encode("abc")
    for settings in (replace(SMALL, num_threads=2, spin=False), replace(SMALL, num_threads=None, log_severity=3)):
        with counting_model.open(settings) as engine:
            received = Received()
            engine.submit(prompt, GREEDY, received)
            drive(engine)
            assert received.tokens == counting_model.answer(prompt, 12)


def test_session_options_reach_onnx_runtime(counting_model: CountingModel) -> None:
    graph = counting_model.folder / "decoder.onnx"
    recording = ("session.record_ep_graph_assignment_info=1",)
    assert Session(graph, RuntimeSettings(session_options=recording)).placed_nodes()
    with pytest.raises(Exception, match="record_ep_graph_assignment_info"):
        Session(graph, RuntimeSettings()).placed_nodes()


@pytest.mark.parametrize("others", [(), ("CPUExecutionProvider",)])
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_onnx_runtime_leaves_out_is_an_error(
    counting_model: CountingModel, others: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with CUDA's wheel on a machine without a driver: ONNX Runtime runs on the CPU and says nothing."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *others])
    settings = replace(SMALL, providers=("CUDAExecutionProvider", *others))
    with pytest.raises(SessionError, match=r"names CUDAExecutionProvider first.*uses CPUExecutionProvider|cannot load"):
        Session(counting_model.folder / "decoder.onnx", settings)


@pytest.mark.parametrize("location", ["../secret.bin", "{folder}/../secret.bin", "link.bin"])
def test_a_graph_that_names_data_outside_its_folder_does_not_load(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    np.arange(4, dtype=np.float32).tofile(tmp_path / "secret.bin")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    weight = onnx.TensorProto(
        name="weight", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value=location.format(folder=folder))
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "weight"], ["y"])],
        "escape",
        [info("x", onnx.TensorProto.FLOAT, [4])],
        [info("y", onnx.TensorProto.FLOAT, [4])],
        [weight],
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 23)])
    (folder / "decoder.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SessionError, match="cannot load"):
        Session(folder / "decoder.onnx", RuntimeSettings(num_threads=1))
