"""`qwonnx export`: a checkpoint to an artifact, with a progress bar and a closing table of sizes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from qwonnx.handlers.cli.tables import size_of, weights_table

if TYPE_CHECKING:  # pulls in torch
    from collections.abc import Callable

    from qwonnx.export.pipeline import ExportProgress

_STAGES = {"trace": "tracing the model", "weights": "writing weights", "finish": "finishing"}


class Target(StrEnum):
    CPU = "cpu"
    PORTABLE = "portable"


class Weights(StrEnum):
    FP32 = "fp32"
    INT8 = "int8"
    INT4 = "int4"


class Activations(StrEnum):
    INT8 = "int8"
    FLOAT32 = "float32"


class KV(StrEnum):
    FLOAT32 = "float32"
    INT8 = "int8"
    INT4 = "int4"


def export(
    checkpoint: Annotated[str, typer.Argument(help="A folder in Hugging Face layout, or a hub repo id.")],
    out: Annotated[Path, typer.Argument(help="The artifact's folder, which must not exist yet.")],
    target: Annotated[
        Target, typer.Option(help="cpu: ONNX Runtime's fast kernels. portable: standard operators only.")
    ] = Target.CPU,
    weights: Annotated[Weights, typer.Option(help="How most weights are stored.")] = Weights.INT4,
    weight_block_size: Annotated[
        int, typer.Option(help="Input features that share a scale: smaller is more exact, and larger on disk.")
    ] = 128,
    activations: Annotated[
        Activations, typer.Option(help="int8: kernels quantise activations as they run, faster at a small loss.")
    ] = Activations.INT8,
    kv: Annotated[
        KV, typer.Option(help="How keys and values are cached: int8 takes a quarter of the memory, int4 an eighth.")
    ] = KV.FLOAT32,
    recipe: Annotated[
        Path | None, typer.Option(help="TOML file with bits for patterns of weight names.", dir_okay=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT if it is an artifact.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")] = None,
) -> None:
    """Export a checkpoint to a folder that ONNX Runtime can run.

    Weights are streamed: memory stays small whatever the size of the model. An interrupted export leaves nothing.

    Examples:

        qwonnx export ./Qwen3.5-35B-A3B ./qwen-int4

        qwonnx export Qwen/Qwen3.5-0.8B ./qwen-small --weights int8

        qwonnx export ./checkpoint ./exact --weights fp32 --target portable

        qwonnx export ./checkpoint ./long --kv int8
    """
    from qwonnx.export.pipeline import ExportOptions, export_checkpoint
    from qwonnx.export.recipe import Recipe

    options = ExportOptions(
        target=target.value,
        weights=weights.value,
        weight_block_size=weight_block_size,
        activations=activations.value,
        kv=kv.value,
        recipe=None if recipe is None else Recipe.load(recipe),
        overwrite=force,
        revision=revision,
    )
    console = Console(stderr=True)
    started = time.monotonic()
    with _progress(console) as on_progress:
        manifest = export_checkpoint(checkpoint, out, options, on_progress=on_progress)
    output = Console()
    output.print(weights_table(manifest.quantization))
    total = sum(entry.size for entry in manifest.files)
    output.print(
        f"{out}: {size_of(total)} in {time.monotonic() - started:.0f} s", markup=False, highlight=False, soft_wrap=True
    )


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[ExportProgress], None]]:
    """A bar with bytes, speed and time left."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,  # what stays is the summary, or the one line of an error
    ) as bar:
        task = bar.add_task("reading the checkpoint", total=None)

        def on_progress(progress: ExportProgress) -> None:
            bar.update(
                task,
                description=_STAGES.get(progress.stage, progress.stage),
                completed=progress.done_bytes,
                total=progress.total_bytes or None,
            )

        yield on_progress
