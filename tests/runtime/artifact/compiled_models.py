"""Compiled models whose engines are a few bytes: TensorRT has to run elsewhere, and records are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qwonnx.runtime.artifact.compiled import EngineIdentity, StepLimits, compiled_path, write_record
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.artifact.manifest import Manifest, WeightGroup, read_manifest, write_manifest
from tests.runtime.counting_model import make

IDENTITY = EngineIdentity("NVIDIA L4", "8.9", "10.13.0", "1.31.1")
LIMITS = StepLimits(max_num_seqs=8, max_num_batched_tokens=512, max_model_len=4096)


def portable(folder: Path) -> Artifact:
    """The counting model as an artifact for the target portable."""
    make(folder)
    write_manifest(folder, replace(read_manifest(folder), target="portable"))
    return open_artifact(folder)


def changed(
    artifact: Artifact, *, target: str = "portable", num_experts: int = 0, kv: str = "float32", storage: str = "float32"
) -> Manifest:
    """Its manifest with other fields; storage is that of one group of weights."""
    manifest = artifact.manifest
    groups = (WeightGroup("attention", storage, 1, 1, 1),)
    return replace(
        manifest,
        target=target,
        model=replace(manifest.model, num_experts=num_experts),
        quantization=replace(manifest.quantization, kv=kv, groups=groups),
    )


def add_compiled(
    artifact: Artifact, identity: EngineIdentity = IDENTITY, limits: StepLimits = LIMITS, graph: bytes = b"graph"
) -> Path:
    """Put a compiled model into an artifact, and return its folder."""
    folder = compiled_path(artifact, "decoder", "tensorrt", identity)
    folder.mkdir(parents=True)
    (folder / "decoder.onnx").write_bytes(graph)
    (folder / "decoder.engine").write_bytes(b"engine")
    write_record(
        folder,
        artifact,
        graph="decoder",
        provider="tensorrt",
        identity=identity,
        limits=limits,
        model="decoder.onnx",
    )
    return folder
