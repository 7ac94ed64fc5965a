"""Where a portable artifact runs that TensorRT was asked for: the compiled model that fits this machine, or CUDA.

    check the artifact -> open the device -> find the model for this GPU and these versions
        -> it fits: TensorRT runs it                  -> none fits: CUDA runs the artifact's graph, and a note says why

TensorRT's engines read and write a state at different addresses, because nothing says in which order they do. ONNX
Runtime's kernels run one after the other, so CUDA updates states in place, as on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnxruntime

from qwonnx.runtime.artifact.compiled import (
    CompiledFolder,
    EngineIdentity,
    StepLimits,
    compiled_folders,
)
from qwonnx.runtime.artifact.folder import Artifact
from qwonnx.runtime.artifact.manifest import ArtifactError, Manifest
from qwonnx.runtime.cuda.device import CudaDevice
from qwonnx.runtime.cuda.tensorrt import tensorrt_version
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.model.placement import (
    CUDA,
    PORTABLE_TARGET,
    TENSORRT,
    Placement,
    cuda_options,
    open_device,
    portable_on_cuda,
)
from qwonnx.runtime.settings import RuntimeSettings

PROVIDER = "tensorrt"  # in settings and records


def place_on_tensorrt(artifact: Artifact, settings: RuntimeSettings, limits: StepLimits) -> Placement:
    """The placement of a portable artifact's decoder on TensorRT, or else on CUDA.

    Args:
        artifact: the artifact, with its compiled models.
        settings: the device.
        limits: the largest steps.

    Raises:
        SettingsError: the artifact is not for TensorRT, or the device or TensorRT cannot be used.
    """
    check_artifact(artifact.manifest)
    device = open_device(settings, TENSORRT, cudnn=True)
    identity = engine_identity(device)
    reasons = []
    for folder in compiled_folders(artifact):
        reason = why_unfit(folder, identity, limits)
        try:
            if not reason:
                return _on_tensorrt(device, folder)
        except (ArtifactError, OSError) as error:
            reason = str(error)
        reasons.append(f"{folder.path.name}: {reason}")
    return portable_on_cuda(
        device,
        f"no compiled model fits this machine ({'; '.join(reasons) or 'there is none'}), so CUDA runs the graph without"
        f" TensorRT: run qwonnx compile {artifact.folder} here",
    )


def check_artifact(manifest: Manifest) -> None:
    """Refuse what TensorRT has no operators for.

    Raises:
        SettingsError: in one line.
    """
    for what in _obstacles(manifest):
        raise SettingsError(f"TensorRT cannot run this artifact, {what}")


def engine_identity(device: CudaDevice) -> EngineIdentity:
    """What an engine must be for that runs here.

    Raises:
        SettingsError: TensorRT cannot be loaded.
    """
    capability = ".".join(map(str, device.compute_capability))
    return EngineIdentity(device.name, capability, tensorrt_version(), onnxruntime.__version__)


def step_limits(settings: RuntimeSettings, max_model_len: int) -> StepLimits:
    """The largest steps of an engine with these settings."""
    return StepLimits(settings.max_num_seqs, min(settings.max_num_batched_tokens, max_model_len), max_model_len)


def why_unfit(folder: CompiledFolder, identity: EngineIdentity, limits: StepLimits) -> str:
    """Why a compiled model is not for this GPU and these steps; empty if it is. Its files are not looked at."""
    model = folder.model
    if model is None:
        return folder.refusal
    if model.provider != PROVIDER:
        return f"it is for {model.provider}"
    if differences := model.identity.differences(identity):
        return f"it is for another machine, {differences}"
    if exceeded := model.limits.exceeded(limits):
        return f"steps are too large, {exceeded}"
    return ""


def _on_tensorrt(device: CudaDevice, folder: CompiledFolder) -> Placement:
    providers = {TENSORRT: tensorrt_options(device), CUDA: cuda_options(device)}
    return Placement(providers, device, in_place=False, graph=folder.graph)


def tensorrt_options(device: CudaDevice) -> dict[str, str]:
    """Options of the TensorRT provider on a device, for the device's own stream."""
    return {"device_id": str(device.index), "user_compute_stream": str(device.stream)}


def _obstacles(manifest: Manifest) -> Iterator[str]:
    storages = sorted({group.storage for group in manifest.quantization.groups} - {"float32"})
    export = "export the checkpoint with --target portable --weights fp32 --kv float32"
    if manifest.target != PORTABLE_TARGET:
        yield (
            f"which is for the target {manifest.target}: it knows standard operators, and no contributed ones; leave"
            f" the device out, or {export}"
        )
    if manifest.model.num_experts:
        yield "which has experts: it has no operator that runs only the chosen ones; export with --target cuda"
    if storages or manifest.quantization.kv != "float32":
        found = ", ".join([*storages, *({f"keys of {manifest.quantization.kv}"} - {"keys of float32"})])
        yield f"which has {found}: it has no operators on bits; {export}"
