"""Where an artifact's decoder runs: the host, CUDA, a model that TensorRT has compiled, or the plugin for RTX."""

from __future__ import annotations

from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.model.placement import PORTABLE_TARGET, Placement, place
from qwonnx.runtime.settings import AUTO, RuntimeSettings

_CPU_TARGET = "cpu"


def place_artifact(artifact: Artifact, settings: RuntimeSettings, max_model_len: int) -> Placement:
    """The placement of an artifact's decoder. Without a named device, it is where the artifact was made for.

    Args:
        artifact: the artifact, with its compiled models.
        settings: the device, and the largest steps.
        max_model_len: the longest sequence.

    Raises:
        SettingsError: the artifact is not for this device, or the device cannot be used.
    """
    target, kind = artifact.manifest.target, settings.device.partition(":")[0]
    if target == _CPU_TARGET and kind in (AUTO, "cpu"):
        return Placement.on_host(settings)

    from qwonnx.runtime.artifact.compiled import compiled_folders  # milliseconds, which others need not spend
    from qwonnx.runtime.model.rtx import RTX_TARGET, place_on_rtx
    from qwonnx.runtime.model.tensorrt import PROVIDER, place_on_tensorrt, step_limits

    limits = step_limits(settings, max_model_len)
    if kind == PROVIDER or (kind == AUTO and target == PORTABLE_TARGET and any(compiled_folders(artifact))):
        return place_on_tensorrt(artifact, settings, limits)
    if RTX_TARGET in (kind, target):
        return place_on_rtx(artifact, settings, limits)
    return place(target, settings)
