"""main_export: the entry point of optimum's exporters, with its name and its first two parameters.

main_export imports the exporter when it is called, so the command line reads TASKS from here without torch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwonnx.export.errors import ExportError
from qwonnx.export.quantization.recipe import Recipe
from qwonnx.runtime.artifact.manifest import Manifest

if TYPE_CHECKING:  # pulls in torch
    from qwonnx.export.weight_files.progress import ExportProgress

# Optimum's names for the only task that exists; the choice changes nothing.
TASKS = ("auto", "text-generation", "text-generation-with-past")


def main_export(
    model_name_or_path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    task: str = "auto",
    recipe: Recipe | str | os.PathLike[str] | None = None,
    on_progress: Callable[[ExportProgress], None] | None = None,
    **options: Any,
) -> Manifest:
    """Export a checkpoint to an artifact, as export_checkpoint does.

    Args:
        model_name_or_path: a folder in Hugging Face layout, or a hub repo id.
        output: the folder to make.
        task: one of TASKS.
        recipe: a recipe, the name of a shipped one, "none", or the path of a recipe's file.
        on_progress: see export_checkpoint.
        options: the other fields of ExportOptions: target, weights, weight_block_size, revision, ...

    Raises:
        ExportError: the task or an option is unknown, or export_checkpoint raises it.
    """
    from qwonnx.export.pipeline import ExportOptions, export_checkpoint

    if task not in TASKS:
        raise ExportError(f"task {task!r} is not supported: use one of {', '.join(TASKS)}")
    known = [field.name for field in dataclasses.fields(ExportOptions)]
    if unknown := sorted(options.keys() - set(known)):
        raise ExportError(f"option {unknown[0]!r} is unknown: use one of {', '.join(known)}")
    if isinstance(recipe, str | os.PathLike):
        recipe = Recipe.choose(os.fspath(recipe), options.get("weights"), options.get("weight_block_size"))
    settings = ExportOptions(**options, recipe=recipe)
    return export_checkpoint(os.fspath(model_name_or_path), Path(output), settings, on_progress=on_progress)
