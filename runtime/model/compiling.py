"""Compile an artifact's decoder for the GPU of this machine, with TensorRT.

    check the artifact -> open the device and TensorRT -> build the engine -> load what was built -> record it

A start of the server then builds nothing. The engine is for one kind of GPU and one version of TensorRT, which the
record names. It is made in a folder of its own, which gets its name when everything is in it.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwonnx.runtime.artifact.compiled import (
    FOLDER,
    CompiledModel,
    EngineIdentity,
    StepLimits,
    compiled_path,
    write_record,
)
from qwonnx.runtime.artifact.file_names import DECODER, graph_file
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.cuda.device import CudaDevice
from qwonnx.runtime.errors import SessionError
from qwonnx.runtime.model.files import settle_max_model_len
from qwonnx.runtime.model.placement import CUDA, TENSORRT, Placement, check_device, cuda_options, open_device
from qwonnx.runtime.model.session import Session, check_version
from qwonnx.runtime.model.shapes import ShapeProfile, shape_profile
from qwonnx.runtime.model.tensorrt import PROVIDER, check_artifact, engine_identity, step_limits, tensorrt_options
from qwonnx.runtime.settings import RuntimeSettings


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled model in an artifact's folder."""

    folder: Path
    model: CompiledModel


def compile_artifact(
    folder: str | os.PathLike[str],
    settings: RuntimeSettings | None = None,
    *,
    out: Path | None = None,
    on_build: Callable[[str], None] = lambda what: None,
) -> Compiled:
    """Compile an artifact's decoder with TensorRT, and store it in the artifact; an older one for this GPU goes.

    Args:
        folder: the artifact, for the target portable, dense, with weights of float32.
        settings: the device, and the largest steps, which a server must not exceed.
        out: write a copy of the artifact here, and leave the other one as it is. It must not exist.
        on_build: called with a line before the build, which takes minutes.

    Raises:
        ArtifactError: the artifact cannot be opened.
        SettingsError: TensorRT cannot run it, or is missing; the device or a setting cannot be used.
        SessionError: TensorRT fails, or takes only a part of the graph.
        OSError: a file cannot be written.
    """
    settings = settings or RuntimeSettings()
    artifact = open_artifact(folder)
    check_artifact(artifact.manifest)
    check_version(artifact.manifest)
    limits = step_limits(settings, settle_max_model_len(artifact.manifest.model, settings))
    device = open_device(settings, TENSORRT, cudnn=True)
    identity = engine_identity(device)
    check_device(device, artifact.manifest)
    on_build(f"building an engine for {identity.gpu} with TensorRT {identity.tensorrt}: this takes minutes")
    if out is None:
        return _compile(artifact, settings, device, identity, limits)
    try:
        shutil.copytree(artifact.folder, out, copy_function=_link, ignore=shutil.ignore_patterns(".*"))
        return _compile(open_artifact(out), settings, device, identity, limits)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _compile(
    artifact: Artifact, settings: RuntimeSettings, device: CudaDevice, identity: EngineIdentity, limits: StepLimits
) -> Compiled:
    """Build in a hidden folder, which then takes the place of an older one."""
    where = compiled_path(artifact, DECODER, PROVIDER, identity)
    part = where.with_name(f".{where.name}.{secrets.token_hex(4)}")
    part.mkdir(parents=True)
    try:
        _build(artifact, settings, device, part, shape_profile(artifact.decoder, limits))
        record = write_record(
            part,
            artifact,
            graph=DECODER,
            provider=PROVIDER,
            identity=identity,
            limits=limits,
            model=graph_file(DECODER),
        )
        shutil.rmtree(where, ignore_errors=True)
        part.rename(where)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Compiled(where, record)


def build_options(part: Path, timing: Path, profile: ShapeProfile) -> dict[str, str]:
    """Options with which the provider builds an engine, and writes it and a graph that names it.

    Args:
        part: for the graph and the engine.
        timing: for what TensorRT measured, which makes another build on the same kind of GPU shorter.
        profile: the shapes.
    """
    return {
        "trt_dump_ep_context_model": "True",
        "trt_ep_context_file_path": str(part / graph_file(DECODER)),
        "trt_ep_context_embed_mode": "0",
        "trt_engine_cache_enable": "True",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(timing),
        "trt_profile_min_shapes": profile.least,
        "trt_profile_opt_shapes": profile.usual,
        "trt_profile_max_shapes": profile.largest,
    }


def _build(
    artifact: Artifact, settings: RuntimeSettings, device: CudaDevice, part: Path, profile: ShapeProfile
) -> None:
    """Build the engine and load it.

    Raises:
        SessionError: TensorRT fails, or takes only a part of the graph.
    """
    decoder = artifact.decoder
    options = tensorrt_options(device) | build_options(part, artifact.folder / FOLDER, profile)
    building = Placement({TENSORRT: options, CUDA: cuda_options(device)}, device)
    Session(artifact.file(decoder.file), settings, placement=building)
    built = part / graph_file(DECODER)
    names = {spec.name for spec in (*decoder.inputs, *decoder.outputs)}
    names |= {name for state in decoder.states for name in (state.past, state.present)}
    if built.is_file():
        loading = Placement({TENSORRT: tensorrt_options(device), CUDA: cuda_options(device)}, device)
        session = Session(built, settings, placement=loading)
        if session.inputs.keys() | session.outputs.keys() == names:
            return
    raise SessionError(
        "TensorRT takes only a part of this graph, and its engines cannot be stored: install a later TensorRT 10, or"
        " export the checkpoint with --target cuda"
    )


def _link(source: str, target: str) -> str:
    """A second name for a file, or a copy on another disk: weights are large, and nothing writes into them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
