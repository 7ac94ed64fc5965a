"""Where a graph runs: ONNX Runtime's providers with their options, and the device whose memory holds the states.

An artifact is made for one kind of device. The CUDA target's graphs have only nodes with CUDA kernels, and other
targets' graphs have nodes without; so a device that the artifact was not made for is an error, never a slow run.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnxruntime

from qwonnx.runtime.cuda.device import CudaDevice
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.install import how_to_install
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.settings import AUTO, RuntimeSettings

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_TARGET = "cuda"

# All nodes on the device, which captured steps need. Float32 products keep their precision. Attention is ONNX Runtime's
# own, whether cuDNN is installed or not. Memory grows by what is asked for, because the states take the rest.
_CUDA_OPTIONS = {
    "enable_cuda_graph": "1",
    "use_tf32": "0",
    "sdpa_kernel": "1",
    "arena_extend_strategy": "kSameAsRequested",
}


@dataclass(frozen=True, slots=True)
class Placement:
    """ONNX Runtime's providers in their order, by name with their options, and the device of the first one.

    device is None if the states are in the host's memory.
    """

    providers: Mapping[str, Mapping[str, str]]
    device: CudaDevice | None = None

    @classmethod
    def on_host(cls, settings: RuntimeSettings) -> Placement:
        """States in the host's memory, and the settings' providers."""
        return cls({name: {} for name in settings.providers})

    @property
    def first(self) -> str:
        """The provider that runs the graph."""
        return next(iter(self.providers))


def place(target: str, settings: RuntimeSettings) -> Placement:
    """The placement of an artifact's graphs.

    Args:
        target: of the export, from the manifest.
        settings: the device, and the providers of targets for the CPU.

    Raises:
        SettingsError: the artifact is not for this device, or the device cannot be used.
    """
    kind, _, index = settings.device.partition(":")
    if target != CUDA_TARGET:
        if kind == "cuda":
            raise SettingsError(
                f"device is {settings.device} and this artifact is for the target {target}: export the checkpoint with"
                " --target cuda, or leave the device out"
            )
        return Placement.on_host(settings)
    if kind not in (AUTO, "cuda"):
        raise SettingsError(
            f"device is {settings.device} and this artifact is for the target cuda: give device cuda, or export the"
            " checkpoint with --target cpu"
        )
    if CUDA not in onnxruntime.get_available_providers():
        raise SettingsError(
            "this artifact is for CUDA, which the installed package onnxruntime lacks; uninstall it, and then"
            f" {how_to_install('gpu')}"
        )
    device = _device(int(index or 0))
    options = {"device_id": str(device.index), "user_compute_stream": str(device.stream)} | _CUDA_OPTIONS
    return Placement({CUDA: options}, device)


def check_room(placement: Placement, num_bytes: int) -> None:
    """Refuse weights that the device has no room for; ONNX Runtime would fail in the middle of loading them.

    Raises:
        SettingsError: fewer bytes are free.
    """
    if placement.device is None:
        return
    free = placement.device.memory().free_bytes
    if free < num_bytes:
        raise SettingsError(
            f"cuda:{placement.device.index} has {bytes_text(free)} of memory free and the weights take"
            f" {bytes_text(num_bytes)}: choose another device, end what uses this one, or export with fewer bits"
        )


def _device(index: int) -> CudaDevice:
    """A device, with CUDA's libraries from where pip installed them or from the system's folders."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        onnxruntime.preload_dlls(cudnn=False)
    try:
        return CudaDevice(index)
    except SettingsError as error:
        missing = re.findall(r"Failed to load (\S+):", printed.getvalue())
        if missing:
            raise SettingsError(f"{error} (not found: {', '.join(missing)})") from error
        raise
