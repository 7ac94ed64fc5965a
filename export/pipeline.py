"""export_checkpoint: from a checkpoint to an artifact. The table of contents of this package.

read and check the checkpoint -> trace -> lower for a target -> write the weights -> write the graph and the manifest.
Everything is written into a temporary sibling of the output folder, which is renamed at the end: an interrupted export
leaves nothing that opens.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from qwonnx.export.checkpoint import Checkpoint, resolve_checkpoint
from qwonnx.export.config import ModelConfig, load_config
from qwonnx.export.errors import ExportError, OutputError
from qwonnx.export.external_data import ExternalDataWriter
from qwonnx.export.lower.cpu import lower_to_cpu
from qwonnx.export.lower.graph_weights import GraphWeights
from qwonnx.export.lower.portable import lower_to_portable
from qwonnx.export.recipe import Recipe
from qwonnx.export.size_table import weight_groups
from qwonnx.export.strict_json import quoted
from qwonnx.export.text_files import check_text_files
from qwonnx.export.trace import decoder_inputs, decoder_outputs, trace_decoder
from qwonnx.export.weight_fit import check_weights
from qwonnx.export.weight_stage import write_weights
from qwonnx.export.weights import WeightSource

# The kernels that the CPU target names first came together in this release.
MINIMUM_ONNXRUNTIME = "1.32"
TARGETS = ("cpu", "portable")
ACTIVATIONS = ("int8", "float32")


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
    revision: str | None = None
    num_threads: int | None = None  # of the weight stage; None: as many as the machine has


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """How far an export has come. The weight stage counts bytes of the checkpoint; other stages have no total."""

    stage: str  # "trace", "weights", "finish"
    done_bytes: int
    total_bytes: int


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
        ExportError: see errors.py; nothing is left behind, and an artifact that was to be overwritten stays.
    """
    options = options or ExportOptions()
    report = on_progress or (lambda progress: None)
    _check_options(options)
    out = Path(out)
    _check_output(out, overwrite=options.overwrite)

    folder, source = resolve_checkpoint(str(checkpoint), options.revision)
    config = load_config(folder)
    opened = Checkpoint.open(folder)
    check_weights(opened, config)
    texts = check_text_files(folder, config.vocab_size)
    recipe = options.recipe or Recipe.preset(options.weights, options.weight_block_size)

    report(ExportProgress("trace", 0, 0))
    model = trace_decoder(config)
    weights = GraphWeights.of_traced(model.graph, recipe, tie_word_embeddings=config.tie_word_embeddings)
    if options.target == "cpu":
        lower_to_cpu(model, weights, int8_activations=options.activations == "int8")
    else:
        lower_to_portable(model, weights)
    _tidy(model)

    items = weights.items()
    recipe.check_rules_match(name for item in items for name, _ in item.weights)
    with _new_folder(out, overwrite=options.overwrite) as building:
        writer = ExternalDataWriter(building)
        written = write_weights(
            WeightSource(opened, config),
            items,
            writer,
            num_threads=options.num_threads,
            on_progress=lambda done, total: report(ExportProgress("weights", done, total)),
        )
        report(ExportProgress("finish", opened.total_bytes, opened.total_bytes))
        weights.attach(written)
        _save_graph(model, building / "decoder.onnx")
        for name in texts:
            shutil.copyfile(folder / name, building / name)
        groups = weight_groups(items)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            qwonnx_version=version("qwonnx"),
            target=options.target,
            minimum_onnxruntime=MINIMUM_ONNXRUNTIME,
            source=source,
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
            files=(*writer.files, *(_file_entry(building, name) for name in ("decoder.onnx", *texts))),
        )
        write_manifest(building, manifest)
    return manifest


def _check_options(options: ExportOptions) -> None:
    for name, allowed in (("target", TARGETS), ("activations", ACTIVATIONS)):
        value = getattr(options, name)
        if value not in allowed:
            raise ExportError(f"{name} {value!r} is unknown: use one of {', '.join(allowed)}")


def _activations(options: ExportOptions, groups: tuple[WeightGroup, ...]) -> str:
    """What the kernels really do: only quantised weights have kernels that quantise activations."""
    quantized = any(group.storage != "float32" for group in groups)
    return options.activations if quantized and options.target == "cpu" else "float32"


def _check_output(out: Path, *, overwrite: bool) -> None:
    try:
        if not out.exists():
            return
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise OutputError(f"{quoted(str(out))} cannot be used ({error.strerror}): choose another folder") from error
    if not overwrite:
        raise OutputError(f"{out} exists: choose another folder, or overwrite it with --force")
    try:
        read_manifest(out)
    except ArtifactError as error:
        raise OutputError(f"{out} exists and is not an artifact, so it is not overwritten: remove it first") from error


@contextmanager
def _new_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `out` that takes its name when the block ends well, and vanishes when it does not.

    Raises:
        OutputError: the disk is full, the parent cannot be written, ...
    """
    building: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".incomplete", dir=out.parent))
        building.chmod(0o755)  # mkdtemp's 0700 is for secrets; an artifact is for whoever may read the folder
        yield building
        if overwrite and out.exists():
            previous = building.with_suffix(".previous")
            out.rename(previous)
            building.rename(out)
            shutil.rmtree(previous)
        else:
            building.rename(out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {out} ({reason}): free some space or choose another place") from error
    finally:
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)


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


def _file_entry(folder: Path, name: str) -> FileEntry:
    return FileEntry(name, (folder / name).stat().st_size, file_sha256(folder / name))


def _model_facts(config: ModelConfig, num_parameters: int) -> ModelFacts:
    shared = {field.name for field in dataclasses.fields(ModelFacts)} - {"num_parameters"}
    return ModelFacts(**{name: getattr(config, name) for name in shared}, num_parameters=num_parameters)
