"""export_checkpoint: from a checkpoint to an artifact. Start here to read this package.

resolve and check the checkpoint -> trace -> lower for a target -> write the weights -> write the graph, the manifest.
Everything is written into a sibling of the output folder, which is renamed at the end. An interrupted export leaves no
folder that opens as an artifact, and may be resumed.
"""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.adapters.adapted_checkpoint import resolve_adapted
from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.checkpoint.location import Access
from qwonnx.export.checkpoint.remote.range_file import READING_THREADS
from qwonnx.export.checkpoint.source_files import SourceHashes
from qwonnx.export.checkpoint.text_files import check_text_files
from qwonnx.export.checkpoint.weight_names import tied_weights
from qwonnx.export.checkpoint.weight_source import SkippedPart
from qwonnx.export.description import describe_artifact
from qwonnx.export.errors import ExportError, OutputError
from qwonnx.export.lowering.adapter_slots import parse_projections
from qwonnx.export.lowering.shared_weights import SharedWeights
from qwonnx.export.modeling.stage_cut import StageCut
from qwonnx.export.modeling.trace import decoder_weights, trace_decoder
from qwonnx.export.modeling.weight_fit import fitting_weights
from qwonnx.export.quantization.cache_scales import cache_scales
from qwonnx.export.quantization.calibration import calibrate
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.quantization.storage_plan import StoragePlan
from qwonnx.export.targets.lowered_graph import lower_decoder
from qwonnx.export.targets.register import DEFAULT_TARGET, TARGETS, choose_target
from qwonnx.export.targets.target import TargetChoice
from qwonnx.export.weight_files.external_data import ExternalDataWriter
from qwonnx.export.weight_files.fingerprint import export_fingerprint
from qwonnx.export.weight_files.memory_budget import DEFAULT_MEMORY_BYTES, check_memory
from qwonnx.export.weight_files.progress import ExportProgress
from qwonnx.export.weight_files.unfinished import unfinished_export
from qwonnx.export.weight_files.weight_stage import write_weights
from qwonnx.runtime.artifact.file_names import DECODER
from qwonnx.runtime.artifact.folder import file_sha256
from qwonnx.runtime.artifact.manifest import (
    WHOLE_MODEL,
    ArtifactError,
    FileEntry,
    Manifest,
    read_manifest,
    write_manifest,
)
from qwonnx.runtime.artifact.strict_json import quoted


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export.

    target: name of the target of the lowering, one of targets/register.py.
    weights: a preset ("fp32", "int8", "int4"); int4 means the target's default recipe.
    weight_block_size: input features that share a scale; None: the recipe's.
    activations: "int8" lets kernels quantise activations on the fly, faster at a small loss that `qwonnx verify` shows;
        or "float32", "float16" or "bfloat16". None is the target's default.
    kv: how the cache stores keys and values: as the target computes (None), or "int8" and "int4", which take a quarter
        and an eighth of float32.
    recipe: overrides weights and weight_block_size.
    calibration: a text that the model reads, to weight input features in the choice of scales.
    overwrite: replace an artifact that exists.
    resume: continue an interrupted export, if there is one.
    revision: branch, tag or commit of a hub repository.
    offline: use of the hub only what its cache has.
    weights_file: which of several models in a folder is exported: a safetensors file or an index, by name.
    num_threads: of the weight stage; None: as many as the machine has, and more if a checkpoint is not on it.
    memory_bytes: limit of tensors in flight in the weight stage.
    adapters: folders, hub repositories or URLs of LoRA adapters, which are merged into the checkpoint in this order.
    requantize: quantise weights again that the checkpoint has as codes and that an adapter changes.
    runtime_adapters: projections that adapters can change while the model runs ("q_proj", ..., or "all"); each is some
        slower then. None by default.
    """

    target: str = DEFAULT_TARGET
    weights: str = "int4"
    weight_block_size: int | None = None
    activations: str | None = None
    kv: str | None = None
    recipe: Recipe | None = None
    calibration: str | None = None
    overwrite: bool = False
    resume: bool = False
    revision: str | None = None
    offline: bool = False
    weights_file: str | None = None
    num_threads: int | None = None
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    adapters: tuple[str | os.PathLike[str], ...] = ()
    requantize: bool = False
    runtime_adapters: tuple[str, ...] = ()


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    on_progress: Callable[[ExportProgress], None] | None = None,
    on_skipped: Callable[[SkippedPart], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    choose_cut: Callable[[ModelConfig], StageCut] | None = None,
) -> Manifest:
    """Export a checkpoint to an artifact.

    Args:
        checkpoint: a folder in Hugging Face layout, a hub repo id, the URL of a folder, or an adapter's folder that
            names one of the first two.
        out: the folder to make. It must not exist, unless it is an artifact and options.overwrite is set.
        options: see ExportOptions.
        on_progress: called from this thread at every stage, and repeatedly while weights are written.
        on_skipped: called at the end for every part of the checkpoint that is recognised and not exported.
        on_note: called before the weights are read, with a line for everything that is not read plainly: files that are
            left out, names that a wrapper changed, where tokens and the chat template come from.
        choose_cut: which layers the artifact gets, if not all: see stages.py.

    Raises:
        ExportError: see errors.py. An artifact to overwrite stays. Written weights stay in a folder that does not open
            as an artifact, unless the checkpoint is at fault; options.resume continues with them.
    """
    options = options or ExportOptions()
    report = on_progress or (lambda progress: None)
    check_system()
    choice = choose_target(options.target, options.activations, options.kv)
    check_memory(options.memory_bytes)
    projections = _adapter_projections(options.runtime_adapters, choice)
    out = Path(out)
    _check_output(out, overwrite=options.overwrite)

    access = Access(
        offline=options.offline, on_bytes=lambda done, total: report(ExportProgress("download", done, total))
    )
    adapted = resolve_adapted(str(checkpoint), options.revision, options.weights_file, options.adapters, access)
    resolved = adapted.resolved
    config = resolved.config
    cut = None if choose_cut is None else choose_cut(config)
    if cut is not None and not choice.target.has_stages:
        raise ExportError(f"the target {choice.target.name} has no stages: use --target cpu")
    if cut is not None and projections:
        raise ExportError("a model in stages takes no adapters while it runs: leave --runtime-adapters or --stages out")
    recipe = options.recipe or Recipe.choose(
        None, options.weights, options.weight_block_size, choice.target.default_recipe
    )
    source = adapted.source()
    shapes = fitting_weights(source, config)
    recipe.check_rules_match(shapes)
    requantised = adapted.requantised(allowed=options.requantize) if recipe.quantizes else ()
    with resolved.naming():
        texts = check_text_files(resolved.folder, config.vocab_size)
    memory_bytes, num_threads = options.memory_bytes, options.num_threads
    if resolved.remote is not None:
        memory_bytes = resolved.remote.limit_memory(memory_bytes)
        num_threads = num_threads or READING_THREADS

    if on_note is not None:
        notes = (*adapted.notes, *requantised, *source.notes, *resolved.tensors.notes, *texts.files.notes)
        for note in (*notes, *recipe.notes(shapes)):
            on_note(note)

    fingerprint = export_fingerprint(
        resolved.tensors,
        resolved.source,
        config,
        recipe,
        choice.described(),
        options.calibration,
        adapted.adapters,
        projections,
    )
    stage = WHOLE_MODEL if cut is None else cut.facts(fingerprint)
    if cut is not None:
        fingerprint["stage"] = f"{cut.number} of {cut.count}"
    with (
        unfinished_export(out, fingerprint, resume=options.resume, overwrite=options.overwrite) as unfinished,
        SourceHashes(resolved.tensors) as hashes,
    ):
        report(ExportProgress("trace", 0, 0))
        scales = cache_scales(source, config, choice.kv) if choice.kv.is_quantized else None
        storages = StoragePlan(recipe, source)
        graphs = {
            DECODER: lower_decoder(trace_decoder(config, cut), storages, config, choice, scales, cut, projections)
        }
        weights = SharedWeights(graph.weights for graph in graphs.values())
        tied = tied_weights(config)
        needed = shapes if cut is None else decoder_weights(config, cut)
        assert weights.names == {tied.get(name, name) for name in needed}, "lowering lost weights"
        importance = None
        if options.calibration is not None:
            importance = calibrate(
                resolved.folder,
                source,
                config,
                options.calibration,
                on_layer=lambda done, total: report(ExportProgress("calibrate", done, total)),
            )
        unfinished.begin()
        building = unfinished.folder
        writer = ExternalDataWriter(building)
        written = write_weights(
            source,
            weights.items,
            writer,
            importance=importance,
            journal=unfinished.journal,
            num_threads=num_threads,
            memory_bytes=memory_bytes,
            on_progress=report,
        )
        report(ExportProgress("finish", resolved.tensors.total_bytes, resolved.tensors.total_bytes))
        weights.attach(written)
        for graph in graphs.values():
            (building / graph.spec.file).write_bytes(graph.serialized())
        for name, content in texts.files.contents.items():
            (building / name).write_bytes(content)
        graph_files = [graph.spec.file for graph in graphs.values()]
        if resolved.remote is not None:
            resolved.remote.check_unchanged()
        manifest = describe_artifact(
            config,
            recipe,
            dataclasses.replace(resolved.source, files=hashes.files()),
            weights.items,
            {name: graph.spec for name, graph in graphs.items()},
            (*writer.files, *(_file_entry(building, name) for name in (*graph_files, *texts.files.contents))),
            choice,
            stage,
            adapted.facts,
            graphs[DECODER].adapter_targets,
        )
        write_manifest(building, manifest)
    if on_skipped is not None:
        for part in source.skipped:
            on_skipped(part)
    return manifest


def _adapter_projections(names: tuple[str, ...], choice: TargetChoice) -> tuple[str, ...]:
    """The projections that adapters can change.

    Raises:
        ExportError: a name is unknown, or the target's graphs take no adapters.
    """
    projections = parse_projections(names)
    if projections and not choice.target.has_adapter_slots:
        able = " or ".join(name for name, target in TARGETS.items() if target.has_adapter_slots)
        raise ExportError(
            f"graphs of the target {choice.target.name} take no adapters while they run: use --target {able}, or merge"
            " with --adapter"
        )
    return projections


def check_system() -> None:
    """Refuse a system without preadv (for bounded memory), flock and O_NOFOLLOW (for exclusive folders).

    Raises:
        ExportError: this is one.
    """
    if os.name != "posix" or not (hasattr(os, "preadv") and hasattr(os, "O_NOFOLLOW")):
        raise ExportError(
            f"reading checkpoints needs Linux or another POSIX system with preadv, and this is {platform.system()}:"
            " export and verify there (WSL or a container works); the artifact runs anywhere"
        )


def _check_output(out: Path, *, overwrite: bool) -> None:
    try:
        if not out.exists():
            return
    except OSError as error:  # the name is too long, or a folder may not be searched
        raise OutputError(f"{quoted(str(out))} cannot be used ({error.strerror}): choose another folder") from error
    if not overwrite:
        raise OutputError(f"{out} exists: choose another folder, or overwrite it with --force")
    try:
        read_manifest(out)
    except ArtifactError as error:
        raise OutputError(f"{out} exists and is not an artifact, so it is not overwritten: remove it first") from error


def _file_entry(folder: Path, name: str) -> FileEntry:
    return FileEntry(name, (folder / name).stat().st_size, file_sha256(folder / name))
