"""export_stages: a model cut into several artifacts, each for a process of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.weight_source import SkippedPart
from qwonnx.export.errors import OutputError
from qwonnx.export.modeling.stage_cut import StageCut, cut_layers
from qwonnx.export.pipeline import ExportOptions, export_checkpoint
from qwonnx.export.weight_files.progress import ExportProgress
from qwonnx.runtime.artifact.manifest import ArtifactError, Manifest, read_manifest


def export_stages(
    checkpoint: str | Path,
    out: str | Path,
    count: int,
    options: ExportOptions | None = None,
    *,
    on_progress: Callable[[ExportProgress], None] | None = None,
    on_skipped: Callable[[SkippedPart], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> tuple[Manifest, ...]:
    """Export a checkpoint to the artifacts out/stage-1, out/stage-2, ...

    Each has the weights of its own layers only. A calibration is computed once for each stage.

    Args:
        checkpoint, options, on_progress, on_skipped, on_note: as of export_checkpoint. options.resume keeps the stages
            that are there already.
        out: the folder of the stages; it is made if it does not exist.
        count: of stages, at least 2.

    Raises:
        ExportError: see errors.py. Stages that are complete stay.
    """
    options, out = options or ExportOptions(), Path(out)
    if any((out / name).exists() for name in ("manifest.json", "decoder.onnx")):
        raise OutputError(f"{out} is an artifact: choose another folder for the stages")
    manifests = []
    for number in range(1, count + 1):
        folder = stage_folder(out, number)

        def choose(config: ModelConfig, number: int = number) -> StageCut:
            return cut_layers(config.num_hidden_layers, count)[number - 1]

        kept = _kept(folder, number, count) if options.resume else None
        if kept is None:
            out.mkdir(parents=True, exist_ok=True)
            last = number == count
            kept = export_checkpoint(
                checkpoint,
                folder,
                options,
                on_progress=on_progress,
                on_skipped=on_skipped if last else None,
                on_note=on_note if last else None,
                choose_cut=choose,
            )
        manifests.append(kept)
    if len({dataclasses.replace(each.stage, number=1) for each in manifests}) > 1:
        raise OutputError(f"{out} has stages of another export: remove it, and export again")
    return tuple(manifests)


def stage_folder(out: Path, number: int) -> Path:
    """Where a stage lies, counted from 1."""
    return out / f"stage-{number}"


def _kept(folder: Path, number: int, count: int) -> Manifest | None:
    """The manifest of a stage that an earlier run has completed."""
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        return None
    return manifest if (manifest.stage.number, manifest.stage.count) == (number, count) else None
