"""Where a graph runs: ONNX Runtime's providers with their options, and the device whose memory holds the states.

An artifact is made for one kind of device. The CUDA target's graphs have only nodes with CUDA kernels; of portable
graphs, only arithmetic on shapes has none; graphs for the CPU have others without. So a device that the artifact was
not made for is an error, never a slow run. artifact_placement.py also knows NVIDIA's compilers.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
from msgspec import Struct

from qwonnx.runtime.artifact.manifest import Manifest
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.install import how_to_install
from qwonnx.runtime.quantities import bytes_text
from qwonnx.runtime.settings import AUTO, RuntimeSettings

if TYPE_CHECKING:
    from qwonnx.runtime.cuda.device import CudaDevice

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_TARGET, PORTABLE_TARGET = "cuda", "portable"

# Float32 products keep their precision. Attention is ONNX Runtime's own, whether cuDNN is installed or not. Memory
# grows by what is asked for, because the states take the rest.
_CUDA_OPTIONS = {
    "use_tf32": "0",
    "sdpa_kernel": "1",
    "arena_extend_strategy": "kSameAsRequested",
}
# What ONNX Runtime gives to the CPU, because it computes with shapes, which are there.
_SHAPE_ARITHMETIC = frozenset(
    {"Add", "Cast", "Concat", "Div", "Gather", "Mul", "Range", "Shape", "Slice", "Sqrt", "Squeeze", "Sub", "Unsqueeze"}
)
_CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"
TENSORRT = "TensorrtExecutionProvider"
# Compute capabilities: of the oldest devices for CUDA 13 (T4), and of those with all kernels (A100).
_OLDEST, _AMPERE = (7, 5), (8, 0)
_FLOATS = ("float16", "bfloat16")
_NAMES = {CUDA: "CUDA", TENSORRT: "TensorRT"}


class Placement(Struct, frozen=True):
    """ONNX Runtime's providers in their order, by name with their options, and the device of the first one.

    device: None if the states are in the host's memory.
    joins_pasts: prompts that have a past can share a step.
    in_place: a step can write a state where it reads it.
    host_operators: that may run on the CPU beside a device. Empty: none may.
    plugin: the plugin's devices, if the first provider is a plugin's: onnxruntime.OrtEpDevice.
    graph: the file that runs instead of the artifact's; None: the artifact's runs.
    note: what the user must be told about this choice, in one line.
    """

    providers: Mapping[str, Mapping[str, str]]
    device: CudaDevice | None = None
    joins_pasts: bool = True
    in_place: bool = True
    host_operators: frozenset[str] = frozenset()
    plugin: tuple[Any, ...] = ()
    graph: Path | None = None
    note: str = ""

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
    kind = settings.device.partition(":")[0]
    if target == PORTABLE_TARGET and kind == "cuda":
        return portable_on_cuda(open_device(settings, cudnn=True))
    if target != CUDA_TARGET:
        if kind not in (AUTO, "cpu"):
            raise SettingsError(
                f"device is {settings.device} and this artifact is for the target {target}: export the checkpoint with"
                " --target cuda, or leave the device out"
            )
        return Placement.on_host(settings)
    if kind not in (AUTO, "cuda"):
        remedy = "export the checkpoint with --target cpu"
        if kind == "tensorrt":
            remedy = "TensorRT does not know the operators of its graph"
        raise SettingsError(
            f"device is {settings.device} and this artifact is for the target cuda: give device cuda, or {remedy}"
        )
    device = open_device(settings)
    # All nodes are on the device, so its steps can be captured.
    return Placement({CUDA: cuda_options(device) | {"enable_cuda_graph": "1"}}, device, joins_pasts=False)


def portable_on_cuda(device: CudaDevice, note: str = "") -> Placement:
    """A portable graph on ONNX Runtime's CUDA kernels, with the arithmetic on its shapes on the CPU."""
    return Placement({CUDA: cuda_options(device)}, device, host_operators=_SHAPE_ARITHMETIC, note=note)


def open_device(settings: RuntimeSettings, provider: str = CUDA, *, cudnn: bool = False) -> CudaDevice:
    """The device of the settings.

    Args:
        settings: with a device that may have an index.
        provider: that will use it.
        cudnn: the provider needs cuDNN too.

    Raises:
        SettingsError: this ONNX Runtime lacks the provider, or the device cannot be used.
    """
    if provider not in onnxruntime.get_available_providers():
        raise SettingsError(
            f"{_NAMES[provider]} would run this artifact, and the installed package onnxruntime lacks it; uninstall the"
            f" package, and then {how_to_install('gpu')}{', or give device cpu' if provider == TENSORRT else ''}"
        )
    device = _device(int(settings.device.partition(":")[2] or 0), cudnn=cudnn)
    if cudnn:
        _check_cudnn()
    return device


def cuda_options(device: CudaDevice) -> dict[str, str]:
    """Options of the CUDA provider on a device, for the device's own stream."""
    return {"device_id": str(device.index), "user_compute_stream": str(device.stream)} | _CUDA_OPTIONS


def check_device(device: CudaDevice | None, manifest: Manifest) -> None:
    """Refuse what a device cannot do; ONNX Runtime would fail in the middle of loading weights, or of a step.

    Raises:
        SettingsError: the device is too old for the artifact, or has fewer bytes free than the weights take.
    """
    if device is None:
        return
    if manifest.target == CUDA_TARGET:
        _check_kernels(device, manifest)
    free, taken = device.memory().free_bytes, manifest.num_bytes
    if free < taken:
        raise SettingsError(
            f"cuda:{device.index} has {bytes_text(free)} of memory free and the weights take"
            f" {bytes_text(taken)}: choose another device, end what uses this one, or export with fewer bits"
        )


def _check_kernels(device: CudaDevice, manifest: Manifest) -> None:
    """What kernels of onnxruntime-gpu 1.31.1 refuse; CUDA 13 itself begins with 7.5."""
    stored = manifest.quantization
    wants = {
        "this onnxruntime-gpu": _OLDEST,
        "its kernel for experts": _AMPERE if manifest.model.num_experts else _OLDEST,
        f"its attention for a cache of {stored.kv}": _OLDEST if stored.kv in _FLOATS else _AMPERE,
        "its kernel for bfloat16": _AMPERE if stored.activations == "bfloat16" else _OLDEST,
    }
    for what, capability in wants.items():
        if device.compute_capability < capability:
            have, want = (".".join(map(str, each)) for each in (device.compute_capability, capability))
            raise SettingsError(
                f"cuda:{device.index} ({device.name}) has compute capability {have} and {what} wants {want}: choose a"
                " newer device, or see docs/cuda.md for what an older one can do"
            )


def _check_cudnn() -> None:
    """CUDA's sums over an axis are cuDNN's, which ONNX Runtime would look for in the middle of a step.

    Raises:
        SettingsError: it cannot be loaded.
    """
    try:
        ctypes.CDLL(_CUDNN)
    except OSError as error:
        raise SettingsError(
            f"this graph needs cuDNN 9, which cannot be loaded ({error}): install nvidia-cudnn-cu13, or export the"
            " checkpoint with --target cuda"
        ) from error


def _device(index: int, *, cudnn: bool) -> CudaDevice:
    """A device, with CUDA's libraries from where pip installed them or from the system's folders."""
    from qwonnx.runtime.cuda.device import CudaDevice  # a server without a device need not spend the time

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        onnxruntime.preload_dlls(cudnn=cudnn)
    try:
        return CudaDevice(index)
    except SettingsError as error:
        missing = re.findall(r"Failed to load (\S+):", printed.getvalue())
        if missing:
            raise SettingsError(f"{error} (not found: {', '.join(missing)})") from error
        raise
