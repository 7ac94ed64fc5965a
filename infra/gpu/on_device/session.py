"""Sessions of single graphs on the device, as the runtime makes them: no node on the CPU."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime

from infra.gpu.on_device.case import Array
from infra.gpu.on_device.finding import LOG_SEVERITY
from qwonnx.runtime.cuda.device import CudaDevice
from qwonnx.runtime.model.placement import Placement, place
from qwonnx.runtime.settings import RuntimeSettings


@cache
def _placement() -> Placement:
    return place("cuda", RuntimeSettings())


def first_device() -> CudaDevice:
    """The device, with one stream for all checks of a group."""
    device = _placement().device
    assert device is not None
    return device


def _wait() -> None:
    """Copies of OrtValues are in another stream than the session's, and may end after they return."""
    ctypes.CDLL("libcudart.so.13").cudaDeviceSynchronize()


def open_session(graph: Path) -> Any:
    """A session on the first device. Raises if a node has no kernel there."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_SEVERITY
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    ((name, given),) = _placement().providers.items()
    own = {**given, "enable_cuda_graph": "0"}
    session = onnxruntime.InferenceSession(str(graph), options, providers=[(name, own)], enable_fallback=0)
    assert session.get_providers()[0] == name, f"{graph.name} is on {session.get_providers()[0]}"
    return session


def run(
    session: Any, inputs: Mapping[str, Array], in_place: Mapping[str, str], on_host: Collection[str]
) -> dict[str, Array]:
    """The outputs by name. Those of `in_place`, by their input, are written where the input is."""
    return _Bound(session, inputs, in_place, on_host).run()


def run_timed(session: Any, inputs: Mapping[str, Array], repeats: int) -> tuple[dict[str, Array], float]:
    """The outputs by name, and the mean seconds of a run on the device."""
    bound = _Bound(session, inputs, {}, ())
    found = bound.run()
    start = time.perf_counter()
    for _ in range(repeats):
        session.run_with_iobinding(bound.binding)
    _wait()
    return found, (time.perf_counter() - start) / repeats


class _Bound:
    """A session with its inputs on the device."""

    def __init__(
        self, session: Any, inputs: Mapping[str, Array], in_place: Mapping[str, str], on_host: Collection[str]
    ) -> None:
        self._session, self.binding = session, session.io_binding()
        self._kept: dict[str, Any] = {}
        for name, array in inputs.items():
            if name in on_host:
                self.binding.bind_cpu_input(name, array)
                continue
            self._kept[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
            self.binding.bind_ortvalue_input(name, self._kept[name])
        targets = {output: self._kept[name] for name, output in in_place.items()}
        self._names = [value.name for value in session.get_outputs()]
        for name in self._names:
            if name in targets:
                self.binding.bind_ortvalue_output(name, targets[name])
            else:
                self.binding.bind_output(name, "cuda", 0)

    def run(self) -> dict[str, Array]:
        _wait()
        self._session.run_with_iobinding(self.binding)
        _wait()
        return {name: value.numpy() for name, value in zip(self._names, self.binding.get_outputs(), strict=True)}
