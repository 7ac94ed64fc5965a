"""The placement of graphs for the target rtx: NVIDIA's plugin TensorRT for RTX, registered with ONNX Runtime.

    load the plugin's package -> register its library -> its devices -> shapes of all steps -> a placement

Experimental: a machine without a GPU has shown how far each of these steps comes, and nothing has run on a GPU. The
engine is built when the session is created.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import onnxruntime

from qwonnx.runtime.artifact.compiled import StepLimits
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.cuda.device import CudaDevice
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.model.placement import Placement
from qwonnx.runtime.model.shapes import shape_profile
from qwonnx.runtime.settings import AUTO, RuntimeSettings

RTX = "NvTensorRTRTXExecutionProvider"
RTX_TARGET = "rtx"

_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"
_DISTRIBUTION = "onnxruntime-ep-nv-tensorrt-rtx-cu13"


def place_on_rtx(artifact: Artifact, settings: RuntimeSettings, limits: StepLimits) -> Placement:
    """The placement of an artifact's decoder on a GeForce RTX.

    Args:
        artifact: for the target rtx.
        settings: the device.
        limits: the largest steps.

    Raises:
        SettingsError: the artifact is not for this device, or the plugin or the device cannot be used.
    """
    target = artifact.manifest.target
    kind, _, index = settings.device.partition(":")
    if target != RTX_TARGET or kind not in (AUTO, "rtx"):
        wanted = f"leave the device out, or export with --target {kind if target == RTX_TARGET else RTX_TARGET}"
        raise SettingsError(f"device is {settings.device} and this artifact is for the target {target}: {wanted}")
    found, number = _plugin_devices(), int(index or 0)
    if number >= len(found):
        have = "no GPU that it can use" if not found else f"{len(found)} GPUs, rtx:0 and so on"
        raise SettingsError(
            f"device rtx:{number} does not exist: the plugin finds {have}; it wants a GeForce RTX of the series 30 or"
            " later, and NVIDIA's driver for CUDA 13"
        )
    device = CudaDevice(number)
    profile = shape_profile(artifact.decoder, limits)
    options = {
        "has_user_compute_stream": "1",
        "user_compute_stream": str(device.stream),
        "nv_profile_min_shapes": profile.least,
        "nv_profile_opt_shapes": profile.usual,
        "nv_profile_max_shapes": profile.largest,
    }
    # Its attention appends to the cache that it is given, as ONNX Runtime's own does: states are bound in place.
    return Placement({RTX: options}, device, joins_pasts=False, plugin=(found[number],))


@cache
def _plugin_devices() -> tuple[Any, ...]:
    """The plugin's devices in this process; a library can be registered only once.

    Raises:
        SettingsError: the plugin is not installed, or cannot be loaded.
    """
    try:
        plugin = import_module(_PACKAGE)
    except ImportError as error:
        raise SettingsError(
            f"this artifact is for NVIDIA's plugin TensorRT for RTX, which is not installed: pip install"
            f" {_DISTRIBUTION}"
        ) from error
    try:
        onnxruntime.register_execution_provider_library(RTX, plugin.get_library_path())
    except Exception as error:
        reason = " ".join(str(error).split())
        raise SettingsError(
            f"NVIDIA's plugin TensorRT for RTX cannot be loaded ({reason}): install NVIDIA's driver for CUDA 13"
        ) from error
    return tuple(device for device in onnxruntime.get_ep_devices() if device.ep_name == RTX)
