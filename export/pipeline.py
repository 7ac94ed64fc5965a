"""export_checkpoint: from a checkpoint to an artifact. The table of contents of this package.

resolve and read the checkpoint -> trace -> lower for a target -> write the weights -> write the graph, the manifest.
Everything is written into a temporary sibling of the output folder, which is renamed at the end: an interrupted export
leaves nothing that opens.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qwonnx.export.artifact import ArtifactError, FileEntry, Manifest, file_sha256, read_manifest, write_manifest
from qwonnx.export.artifact_files import GRAPH_FILE, OPTIONAL_FILES, TOKENIZER_FILE
from qwonnx.export.checkpoint import Checkpoint, resolve_checkpoint
from qwonnx.export.config import load_config
from qwonnx.export.decoder_graph import lower_decoder
from qwonnx.export.description import describe_artifact
from qwonnx.export.errors import CheckpointError, ExportError, OutputError
from qwonnx.export.external_data import ExternalDataWriter
from qwonnx.export.recipe import Recipe
from qwonnx.export.trace import trace_decoder
from qwonnx.export.weight_stage import write_weights
from qwonnx.export.weights import WeightSource

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
    recipe = options.recipe or Recipe.preset(options.weights, options.weight_block_size)

    report(ExportProgress("trace", 0, 0))
    int8_activations = options.activations == "int8"
    decoder = lower_decoder(
        trace_decoder(config), recipe, config, target=options.target, int8_activations=int8_activations
    )
    weights = decoder.weights
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
        (building / GRAPH_FILE).write_bytes(decoder.serialized())
        copied = _copy_files(folder, building)
        manifest = describe_artifact(
            config,
            recipe,
            source,
            items,
            (*writer.files, *(_file_entry(building, name) for name in (GRAPH_FILE, *copied))),
            target=options.target,
            int8_activations=int8_activations,
        )
        write_manifest(building, manifest)
    return manifest


def _check_options(options: ExportOptions) -> None:
    for name, allowed in (("target", TARGETS), ("activations", ACTIVATIONS)):
        value = getattr(options, name)
        if value not in allowed:
            raise ExportError(f"{name} {value!r} is unknown: use one of {', '.join(allowed)}")


def _check_output(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
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


def _copy_files(checkpoint: Path, building: Path) -> list[str]:
    if not (checkpoint / TOKENIZER_FILE).is_file():
        raise CheckpointError(f"{checkpoint} has no {TOKENIZER_FILE}: download it from the model's hub page")
    names = [name for name in (TOKENIZER_FILE, *OPTIONAL_FILES) if (checkpoint / name).is_file()]
    for name in names:
        shutil.copyfile(checkpoint / name, building / name)
    return names


def _file_entry(folder: Path, name: str) -> FileEntry:
    return FileEntry(name, (folder / name).stat().st_size, file_sha256(folder / name))
