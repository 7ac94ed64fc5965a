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

_STAGES = {
    "trace": "tracing the model",
    "calibrate": "calibrating",
    "weights": "writing weights",
    "finish": "finishing",
}


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


def export(
    checkpoint: Annotated[str, typer.Argument(help="A folder in Hugging Face layout, or a hub repo id.")],
    out: Annotated[Path, typer.Argument(help="The artifact's folder, which must not exist yet.")],
    target: Annotated[
        Target, typer.Option(help="cpu: ONNX Runtime's fast kernels. portable: standard operators only.")
    ] = Target.CPU,
    weights: Annotated[
        Weights | None, typer.Option(help="How most weights are stored; int4 unless the recipe says otherwise.")
    ] = None,
    weight_block_size: Annotated[
        int | None, typer.Option(help="Input features that share a scale: smaller is more exact, and larger on disk.")
    ] = None,
    activations: Annotated[
        Activations, typer.Option(help="int8: kernels quantise activations as they run, faster at a small loss.")
    ] = Activations.INT8,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="smallest, balanced (what int4 means by default), best; none for plain bits; or a TOML file with bits"
            " for patterns of weight names.",
            metavar="NAME|FILE",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="A text like those the model will read: its first 4096 tokens decide which weights count."),
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

        qwonnx export ./checkpoint ./better --recipe best --calibration sample.txt
    """
    from qwonnx.export.calibration import read_text
    from qwonnx.export.pipeline import ExportOptions, export_checkpoint
    from qwonnx.export.recipe import Recipe

    options = ExportOptions(
        target=target.value,
        activations=activations.value,
        recipe=Recipe.choose(recipe, weights and weights.value, weight_block_size),
        calibration=None if calibration is None else read_text(calibration),
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
