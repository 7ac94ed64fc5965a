"""export_checkpoint: from a checkpoint to an artifact. The table of contents of this package.

resolve and check the checkpoint -> trace -> lower for a target -> write the weights -> write the graph, the manifest.
Everything is written into a sibling of the output folder, which is renamed at the end: an interrupted export leaves
nothing that opens, and may be resumed.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from qwonnx.export.artifact import (
    SCHEMA_VERSION,
    ArtifactError,
    FileEntry,
    GraphSpec,
    Manifest,
    ModelFacts,
    QuantizationFacts,
    WeightGroup,
    file_sha256,
    read_manifest,
    write_manifest,
)
from qwonnx.export.cache_spec import state_specs
from qwonnx.export.checkpoint import resolve_checkpoint
from qwonnx.export.config import ModelConfig, load_config
from qwonnx.export.errors import CheckpointError, ExportError, OutputError
from qwonnx.export.external_data import ExternalDataWriter
from qwonnx.export.fingerprint import export_fingerprint
from qwonnx.export.lower.cpu import lower_to_cpu
from qwonnx.export.lower.graph_weights import GraphWeights
from qwonnx.export.lower.portable import lower_to_portable
from qwonnx.export.memory_budget import DEFAULT_MEMORY_BYTES, check_memory
from qwonnx.export.progress import ExportProgress
from qwonnx.export.recipe import Recipe
from qwonnx.export.size_table import weight_groups
from qwonnx.export.trace import decoder_inputs, decoder_outputs, decoder_weights, trace_decoder
from qwonnx.export.unfinished import unfinished_export
from qwonnx.export.weight_stage import write_weights
from qwonnx.export.weights import WeightSource

# The kernels that the CPU target names first came together in this release.
MINIMUM_ONNXRUNTIME = "1.32"
TARGETS = ("cpu", "portable")
ACTIVATIONS = ("int8", "float32")

# Copied as they are: what the runtime reads beside graphs and weights.
TOKENIZER_FILE = "tokenizer.json"
OPTIONAL_FILES = ("chat_template.jinja", "generation_config.json")


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export.

    weights is a preset ("fp32", "int8", "int4") and weight_block_size the number of input features that share a scale;
    a recipe overrides both. activations "int8" lets the CPU kernels quantise activations on the fly: faster, at a small
    loss that `qwonnx verify` shows. The portable target always computes in float32.
    """

    target: str = "cpu"
    weights: str = "int4"
    weight_block_size: int = 128
    activations: str = "int8"
    recipe: Recipe | None = None
    overwrite: bool = False
    resume: bool = False  # go on with an interrupted export, if there is one
    revision: str | None = None
    num_threads: int | None = None  # of the weight stage; None: as many as the machine has
    memory_bytes: int = DEFAULT_MEMORY_BYTES  # of tensors in flight in the weight stage


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    options: ExportOptions | None = None,
    *,
    on_progress: Callable[[ExportProgress], None] | None = None,
) -> Manifest:
    """Export a checkpoint to an artifact.

    Args:
        checkpoint: a folder in Hugging Face layout, or a hub repo id.
        out: the folder to make. It must not exist, unless options.overwrite says so and it is an artifact.
        options: see ExportOptions.
        on_progress: called from this thread at every stage, and again and again while weights are written.

    Raises:
        ExportError: see errors.py. An artifact that was to be overwritten stays; weights that were written stay too, in
            a folder that nothing opens, unless the checkpoint is at fault: options.resume goes on with them.
    """
    options = options or ExportOptions()
    report = on_progress or (lambda progress: None)
    _check_options(options)
    out = Path(out)
    _check_output(out, overwrite=options.overwrite)

    resolved = resolve_checkpoint(str(checkpoint), options.revision)
    config = load_config(resolved.folder)
    recipe = options.recipe or Recipe.preset(options.weights, options.weight_block_size)
    source = WeightSource(resolved.tensors, config)
    shapes = decoder_weights(config)
    source.check(shapes)
    recipe.check_rules_match(shapes)
    copied = _files_to_copy(resolved.folder)

    fingerprint = export_fingerprint(
        resolved.tensors,
        resolved.source,
        config,
        recipe,
        target=options.target,
        activations=options.activations,
    )
    with unfinished_export(out, fingerprint, resume=options.resume, overwrite=options.overwrite) as unfinished:
        report(ExportProgress("trace", 0, 0))
        decoder = build_decoder(config, recipe, target=options.target, activations=options.activations)

        unfinished.begin()
        building = unfinished.folder
        items = decoder.weights.items()
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        assert {name for item in items for name, _ in item.weights} == shapes.keys() - tied, "lowering lost weights"
        writer = ExternalDataWriter(building)
        written = write_weights(
            source,
            items,
            writer,
            journal=unfinished.journal,
            num_threads=options.num_threads,
            memory_bytes=options.memory_bytes,
            on_progress=report,
        )
        report(ExportProgress("finish", resolved.tensors.total_bytes, resolved.tensors.total_bytes))
        decoder.weights.attach(written)
        _save_graph(decoder.model, building / "decoder.onnx")
        for name in copied:
            shutil.copyfile(resolved.folder / name, building / name)
        groups = weight_groups(items)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            qwonnx_version=version("qwonnx"),
            target=options.target,
            minimum_onnxruntime=MINIMUM_ONNXRUNTIME,
            source=resolved.source,
            model=_model_facts(config, sum(group.num_parameters for group in groups)),
            quantization=QuantizationFacts(
                weights=recipe.weights,
                weight_block_size=recipe.weight_block_size,
                activations=_activations(options, groups),
                recipe=tuple((rule.pattern, rule.bits) for rule in recipe.rules),
                groups=groups,
            ),
            graphs={"decoder": GraphSpec("decoder.onnx", decoder_inputs(), decoder_outputs(config))},
            states=state_specs(config),
            files=(*writer.files, *(_file_entry(building, name) for name in ("decoder.onnx", *copied))),
        )
        write_manifest(building, manifest)
    return manifest


@dataclass(frozen=True, slots=True)
class BuiltGraph:
    """A graph that lacks nothing but its weights' bytes, and the table that says which those are."""

    model: ir.Model
    weights: GraphWeights


def build_decoder(config: ModelConfig, recipe: Recipe, *, target: str, activations: str) -> BuiltGraph:
    """Trace the text model and lower it for a target; no weight is read.

    Raises:
        RecipeError: the recipe asks for what the target cannot do.
    """
    model = trace_decoder(config)
    weights = GraphWeights.of_traced(model.graph, recipe, tie_word_embeddings=config.tie_word_embeddings)
    if target == "cpu":
        lower_to_cpu(model, weights, int8_activations=activations == "int8")
    else:
        lower_to_portable(model, weights)
    _tidy(model)
    return BuiltGraph(model, weights)


def _check_options(options: ExportOptions) -> None:
    for name, allowed in (("target", TARGETS), ("activations", ACTIVATIONS)):
        value = getattr(options, name)
        if value not in allowed:
            raise ExportError(f"{name} {value!r} is unknown: use one of {', '.join(allowed)}")
    check_memory(options.memory_bytes)


def _activations(options: ExportOptions, groups: tuple[WeightGroup, ...]) -> str:
    """What the kernels really do: only quantised weights have kernels that quantise activations."""
    quantized = any(group.storage != "float32" for group in groups)
    return options.activations if quantized and options.target == "cpu" else "float32"


def _check_output(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise OutputError(f"{out} exists: choose another folder, or overwrite it with --force")
    try:
        read_manifest(out)
    except ArtifactError as error:
        raise OutputError(f"{out} exists and is not an artifact, so it is not overwritten: remove it first") from error


def _tidy(model: ir.Model) -> None:
    """Drop what tracing left: copies, dead shape arithmetic, equal computations, traces of this machine."""
    for tidy in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),  # and the initializers that nothing uses
        passes.RemoveUnusedOpsetsPass(),
        passes.ClearMetadataAndDocStringPass(),
        passes.TopologicalSortPass(),
    ):
        tidy(model)
    model.producer_name, model.producer_version = "qwonnx", version("qwonnx")
    model.graph.name = "decoder"


def _save_graph(model: ir.Model, path: Path) -> None:
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _files_to_copy(checkpoint: Path) -> list[str]:
    if not (checkpoint / TOKENIZER_FILE).is_file():
        raise CheckpointError(f"{checkpoint} has no {TOKENIZER_FILE}: download it from the model's hub page")
    return [name for name in (TOKENIZER_FILE, *OPTIONAL_FILES) if (checkpoint / name).is_file()]


def _file_entry(folder: Path, name: str) -> FileEntry:
    return FileEntry(name, (folder / name).stat().st_size, file_sha256(folder / name))


def _model_facts(config: ModelConfig, num_parameters: int) -> ModelFacts:
    shared = {field.name for field in dataclasses.fields(ModelFacts)} - {"num_parameters"}
    return ModelFacts(**{name: getattr(config, name) for name in shared}, num_parameters=num_parameters)
