"""Where a portable artifact runs that TensorRT was asked for: the compiled model that fits this machine, or CUDA.

    device tensorrt, or auto and compiled models -> open the device -> find the model for this GPU and these versions
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
    place,
    portable_on_cuda,
)
from qwonnx.runtime.model.rtx import RTX_TARGET, place_on_rtx
from qwonnx.runtime.settings import AUTO, RuntimeSettings

PROVIDER = "tensorrt"  # in settings and records


def place_artifact(artifact: Artifact, settings: RuntimeSettings, max_model_len: int) -> Placement:
    """The placement of an artifact's decoder.

    Args:
        artifact: the artifact, with its compiled models.
        settings: the device, and the largest steps.
        max_model_len: the longest sequence.

    Raises:
        SettingsError: the artifact is not for this device, or the device or TensorRT cannot be used.
    """
    kind = settings.device.partition(":")[0]
    if kind == "rtx" or (artifact.manifest.target == RTX_TARGET and kind != PROVIDER):
        return place_on_rtx(artifact, settings, step_limits(settings, max_model_len))
    is_portable = artifact.manifest.target == PORTABLE_TARGET
    may_be_compiled = kind == PROVIDER or (kind == AUTO and is_portable)
    folders = list(compiled_folders(artifact)) if may_be_compiled else []
    if kind != PROVIDER and not folders:
        return place(artifact.manifest.target, settings)
    check_artifact(artifact.manifest)
    device = open_device(settings, TENSORRT, cudnn=True)
    identity, limits = engine_identity(device), step_limits(settings, max_model_len)
    reasons = []
    for folder in folders:
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
