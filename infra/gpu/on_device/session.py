"""Sessions of single graphs on the device, as the runtime makes them: no node on the CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from infra.gpu.on_device.finding import LOG_SEVERITY
from qwonnx.runtime.model.placement import Placement, place
from qwonnx.runtime.settings import RuntimeSettings


@cache
def _placement() -> Placement:
    return place("cuda", RuntimeSettings())


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
    session: Any, inputs: Mapping[str, np.ndarray[Any, Any]], in_place: Mapping[str, str], on_host: tuple[str, ...]
) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs by name. Those of `in_place`, by their input, are written where the input is."""
    binding, kept = session.io_binding(), {}
    for name, array in inputs.items():
        if name in on_host:
            binding.bind_cpu_input(name, array)
            continue
        kept[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
        binding.bind_ortvalue_input(name, kept[name])
    targets = {output: kept[name] for name, output in in_place.items()}
    names = [value.name for value in session.get_outputs()]
    for name in names:
        if name in targets:
            binding.bind_ortvalue_output(name, targets[name])
        else:
            binding.bind_output(name, "cuda", 0)
    _wait()
    session.run_with_iobinding(binding)
    _wait()
    return {name: value.numpy() for name, value in zip(names, binding.get_outputs(), strict=True)}
