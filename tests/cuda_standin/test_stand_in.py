"""The stand-in with onnxruntime-gpu: sessions run, kernels are counted, graphs are captured, misuse is refused."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from qwonnx.runtime.cuda.device import Block, CopyKind, CudaDevice
from qwonnx.runtime.errors import SessionError, SettingsError
from tests.cuda_standin.stand_in import EventKind, StandIn

CUDA = "CUDAExecutionProvider"


def relu(device: CudaDevice, **options: str) -> Any:
    """A CUDA session of two nodes, on the device's stream."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Sigmoid", ["h"], ["y"])]
    size = [4]
    graph = helper.make_graph(nodes, "g", [value("x", TensorProto.FLOAT, size)], [value("y", TensorProto.FLOAT, size)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session_options = onnxruntime.SessionOptions()
    session_options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = CUDA, {"user_compute_stream": str(device.stream), **options}
    return onnxruntime.InferenceSession(model.SerializeToString(), session_options, providers=[provider])


@pytest.fixture(scope="module")
def device() -> CudaDevice:
    return CudaDevice()


def bound(session: Any, device: CudaDevice) -> tuple[Any, list[Any]]:
    """A binding of device memory, and this memory."""
    binding, memory = session.io_binding(), [device.allocate(16) for _ in range(2)]
    binding.bind_input("x", "cuda", 0, np.float32, [4], memory[0].address)
    binding.bind_output("y", "cuda", 0, np.float32, [4], memory[1].address)
    return binding, memory


def test_each_node_is_a_launch_and_nothing_is_copied(standin: StandIn, device: CudaDevice) -> None:
    session = relu(device)
    assert session.get_providers()[0] == CUDA
    binding, memory = bound(session, device)
    session.run_with_iobinding(binding)
    with standin.recording() as recording:
        session.run_with_iobinding(binding)
    assert [("Relu" in name, "Sigmoid" in name) for name in recording.launches()] == [(True, False), (False, True)]
    assert not recording.of(EventKind.COPY)
    assert not recording.of(EventKind.REFUSAL)
    del memory


def test_a_captured_step_is_one_launch_of_its_graph(standin: StandIn, device: CudaDevice) -> None:
    session = relu(device, enable_cuda_graph="1")
    binding, memory = bound(session, device)
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "1")
    with standin.recording() as recording:
        session.run_with_iobinding(binding, options)
    assert len(recording.captured()) == 2
    for _ in range(2):
        with standin.recording() as recording:
            session.run_with_iobinding(binding, options)
        (launch,) = recording.of(EventKind.GRAPH_LAUNCH)
        assert launch.num_bytes == 2
        assert not recording.launches()
    del memory


def test_memory_is_counted_and_ends(device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_STANDIN_MEMORY_BYTES", str(1 << 40))
    before = device.memory()
    assert before.total_bytes == 1 << 40
    memory = device.allocate(5000)
    assert before.free_bytes - device.memory().free_bytes == 5000
    del memory
    assert device.memory() == before
    monkeypatch.setenv("CUDA_STANDIN_MEMORY_BYTES", "1000")
    with pytest.raises(MemoryError, match="cuda:0 has no 5000 bytes left"):
        device.allocate(5000)


def test_memory_begins_as_zeros_and_copies_take_blocks(device: CudaDevice) -> None:
    memory = device.allocate(24)
    rows = device.pinned([2, 3], np.uint8)
    rows[...] = [[1, 2, 3], [4, 5, 6]]
    device.copy(CopyKind.TO_DEVICE, Block(memory.address + 1, 12), Block(rows.ctypes.data, 3), 3, 2)
    out = np.full(24, 9, np.uint8)
    device.copy(CopyKind.TO_HOST, Block(out.ctypes.data, 24), Block(memory.address, 24), 24)
    device.synchronize()
    assert out.tolist() == [0, 1, 2, 3, *[0] * 9, 4, 5, 6, *[0] * 8]
    device.clear(Block(memory.address, 12), 3, 2)
    device.copy(CopyKind.TO_HOST, Block(out.ctypes.data, 24), Block(memory.address, 24), 24)
    assert out.tolist() == [0, 0, 0, 3, *[0] * 11, 6, *[0] * 8]


@pytest.mark.parametrize("kind", CopyKind)
def test_a_copy_that_leaves_its_memory_is_refused(standin: StandIn, device: CudaDevice, kind: CopyKind) -> None:
    here, there, host = device.allocate(64), device.allocate(64), np.zeros(64, np.uint8)
    source = host.ctypes.data if kind is CopyKind.TO_DEVICE else here.address
    target = host.ctypes.data if kind is CopyKind.TO_HOST else there.address
    device.copy(kind, Block(target, 64), Block(source, 64), 64)
    wrong = {CopyKind.TO_DEVICE: there, CopyKind.TO_HOST: here, CopyKind.ON_DEVICE: there}[kind]
    places = {"beyond": (target + (kind is not CopyKind.TO_HOST), source + (kind is CopyKind.TO_HOST))}
    places["of the wrong kind"] = (target, wrong.address) if kind is CopyKind.TO_DEVICE else (host.ctypes.data, source)
    if kind is CopyKind.TO_HOST:
        places["of the wrong kind"] = (there.address, source)
    for to, start in places.values():
        with (
            standin.recording() as recording,
            pytest.raises(SessionError, match=r"Memcpy2DAsync: invalid arg"),
        ):
            device.copy(kind, Block(to, 64), Block(start, 64), 64)
        (refusal,) = recording.of(EventKind.REFUSAL)
        assert "kind" in refusal.name
    ctypes.CDLL("libcudart.so.13").cudaGetLastError()


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CUDA_STANDIN_DEVICES", "0", r"device cuda:0 cannot be used: no CUDA-capable device is detected"),
        ("CUDA_STANDIN_DRIVER_VERSION", "12040", r"cannot be used: CUDA driver version is insufficient"),
    ],
)
def test_a_device_that_cannot_be_used_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=message) as raised:
        CudaDevice()
    assert "\n" not in str(raised.value)


def test_a_device_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(SettingsError, match=r"device cuda:1 does not exist: there is one, cuda:0"):
        CudaDevice(1)


def test_the_capability_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_STANDIN_COMPUTE_CAPABILITY", "86")
    assert CudaDevice().compute_capability == (8, 6)
