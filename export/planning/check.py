"""What an export makes of a checkpoint, before it: what is used, skipped and noted, or why it is refused.

The same functions decide as in an export, and raise the same errors; without torch, because only names, shapes and text
files are read. Values of weights are not: those that are not finite, or zero points that contradict config.json, show
when they are exported. Of a checkpoint in the hub or at a URL, headers are read in ranges; only its text files and the
adapters are downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qwonnx.export.adapters.adapted_checkpoint import AdaptedCheckpoint, resolve_adapted
from qwonnx.export.checkpoint.formats.modelopt_config import SIDE_FILE
from qwonnx.export.checkpoint.gguf.files import is_gguf
from qwonnx.export.checkpoint.location import Access, locate_checkpoint, repository_of
from qwonnx.export.checkpoint.needed_files import SIDE_FILES, TEXT_FILES
from qwonnx.export.checkpoint.remote.addresses import is_url, parse_url
from qwonnx.export.checkpoint.text_files import check_text_files
from qwonnx.export.checkpoint.weight_source import SkippedPart
from qwonnx.export.errors import AccessError, ExportError
from qwonnx.export.modeling.weight_fit import check_fit
from qwonnx.export.planning.decoder_weights import planned_shapes, planned_weights
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.export.quantization.storage_plan import StoragePlan
from qwonnx.export.targets.register import choose_target
from qwonnx.runtime.adapters.adapter_config import ADAPTER_CONFIG
from qwonnx.runtime.artifact.manifest import AdapterFacts

# Files beside the weights that an export reads, or that say nothing about the model. Tokenizers have more forms.
_READ = (frozenset(TEXT_FILES) - {ADAPTER_CONFIG, *SIDE_FILES}) | {SIDE_FILE}
_HARMLESS = (
    "readme",
    "license",
    "notice",
    ".git",
    "configuration.json",
    "preprocessor_config",
    "video_preprocessor",
    "mergekit_config.yml",
)

_COPY_NOTE = "lm_head.weight: a copy of the tied embedding, whose values only an export compares"


@dataclass(frozen=True, slots=True)
class CheckedModel:
    """Facts of a checkpoint that an export takes."""

    architecture: str
    num_layers: int
    num_experts: int  # 0 in a dense model
    dtype: str  # of most bytes, or the format of codes
    files: tuple[str, ...]  # that hold tensors
    num_tensors: int  # that are used
    num_bytes: int  # of these
    num_kept_codes: int  # weights of the model whose codes go into the artifact unchanged


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The verdict on a checkpoint. refusal is the line with which an export refuses it; None: it is exported.

    unread are files of the folder that an export does not read, and that may matter.
    """

    name: str
    refusal: str | None
    model: CheckedModel | None = None
    adapters: tuple[AdapterFacts, ...] = ()
    skipped: tuple[SkippedPart, ...] = ()
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def check_checkpoint(
    checkpoint: str,
    weights_file: str | None = None,
    adapters: Sequence[str | os.PathLike[str]] = (),
    *,
    revision: str | None = None,
    offline: bool = False,
    recipe: Recipe | None = None,
    target: str | None = None,
    requantize: bool = False,
) -> CheckReport:
    """Check a checkpoint, or an adapter that names its base.

    Args:
        checkpoint: a folder, a GGUF file, a hub repository, or a URL.
        weights_file: see choose_files.
        adapters: that the export merges, in their order.
        revision: branch, tag or commit of a hub repository.
        offline: use of the hub only what its cache has.
        recipe: the export's; None: the target's default.
        target: by name; None: the default one.
        requantize: see ExportOptions.

    Raises:
        CheckpointError: there is no such folder, repository or URL.
        AccessError: it may not be read, or cannot be reached.
    """
    path = Path(checkpoint)
    name = _name(checkpoint, path, revision)
    choice = choose_target(*(() if target is None else (target,)))
    recipe = recipe or Recipe.choose(None, None, None, choice.target.default_recipe)
    try:
        access = Access(offline=offline, headers_only=True)
        adapted = resolve_adapted(checkpoint, revision, weights_file, adapters, access)
        config, source = adapted.resolved.config, adapted.source()
        shapes = check_fit(source, config, partial(planned_shapes, config))
        recipe.check_rules_match((*shapes, "lm_head.weight"))
        requantised = adapted.requantised(allowed=requantize) if recipe.quantizes else ()
        with adapted.resolved.naming():
            texts = check_text_files(adapted.resolved.folder, config.vocab_size)
        planned_weights(config, StoragePlan(recipe, source), choice)
    except AccessError:
        raise
    except ExportError as error:
        return CheckReport(name, str(error), unread=_unread(path, None) if path.is_dir() else ())
    copy = (_COPY_NOTE,) if source.has_tied_copy and not adapted.resolved.tensors.has_values else ()
    kept = sum(source.rows(name, shape).codes is not None for name, shape in shapes.items())
    skipped = source.skipped
    tensors = adapted.resolved.tensors
    return CheckReport(
        name=name,
        refusal=None,
        model=CheckedModel(
            architecture=config.architecture,
            num_layers=config.num_hidden_layers,
            num_experts=config.num_experts,
            dtype=adapted.resolved.source.dtype,
            files=tuple(file.name for file in tensors.files),
            num_tensors=len(tensors.names) - sum(part.num_tensors for part in skipped),
            num_bytes=tensors.total_bytes - sum(part.num_bytes for part in skipped),
            num_kept_codes=kept if recipe.quantizes else 0,
        ),
        adapters=adapted.facts,
        skipped=skipped,
        notes=(
            *(*adapted.notes, *requantised, *source.notes, *tensors.notes),
            *(*texts.files.notes, *recipe.notes(shapes), *copy),
        ),
        unread=_unread(adapted.resolved.folder, adapted),
    )


def _name(checkpoint: str, path: Path, revision: str | None) -> str:
    """The checkpoint's name, for display.

    Raises:
        CheckpointError: there is nothing of this name.
    """
    if path.is_dir() or is_gguf(path):
        return path.resolve().name
    if is_url(checkpoint):
        return parse_url(checkpoint).url
    if path.exists():
        locate_checkpoint(checkpoint, revision)  # says what the file is
    return repository_of(checkpoint, revision).name


def _unread(folder: Path, adapted: AdaptedCheckpoint | None) -> tuple[str, ...]:
    """Names of files and folders that are not read, but for those that cannot matter."""
    if not folder.is_dir():  # of a model in GGUF, all is in its files
        return ()
    read = set(_READ)
    if adapted is not None:
        read |= {file.name for file in adapted.resolved.tensors.files}
    else:
        read |= {path.name for path in folder.glob("*.safetensors*")} | {ADAPTER_CONFIG}
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return tuple(name for name in names if name not in read and not name.lower().startswith(_HARMLESS))
