"""`qwonnx verify`: compare an artifact with the checkpoint that it was exported from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qwonnx.handlers.cli.arguments import ArtifactArgument
from qwonnx.handlers.cli.engine_options import KernelsOption, runtime_settings
from qwonnx.handlers.cli.tables import facts_table
from qwonnx.handlers.cli.text_file import read_text
from qwonnx.runtime.native.kernels import Kernels

_LAYERS_IN_A_ROW = 6


def verify(
    artifact: ArtifactArgument,
    against: Annotated[str, typer.Option(help="The checkpoint: a folder in Hugging Face layout, or a hub repo id.")],
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text to read, instead of a short built-in one.")] = None,
    max_kl: Annotated[
        float | None, typer.Option(min=0, help="Exit with status 1 if the mean KL divergence is larger, in nats.")
    ] = None,
    weights_file: Annotated[
        str | None, typer.Option(help="The one that `qwonnx export` was given, if any.", metavar="FILE")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="The adapters that `qwonnx export` was given, in their order; peft merges them.", metavar="ADAPTER"
        ),
    ] = None,
    kernels: KernelsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run transformers and the artifact on the same tokens, and compare their predictions.

    The whole checkpoint is loaded in float32, which needs four bytes of memory for each parameter. A line warns if its
    activations come near the limit of float16, in which other targets compute.

    Examples:

        qwonnx verify ./qwen-int4 --against ./Qwen3.5-0.8B

        qwonnx verify ./qwen-int4 --against ./checkpoint --text a.txt --max-kl 0.05

        qwonnx verify ./tuned --against ./Qwen3.5-0.8B --adapter ./adapter
    """
    from qwonnx.export.evaluation.verify import compare

    settings = runtime_settings(kernels=kernels)
    content = None if text is None else read_text(text)
    with Console(stderr=True).status("reading") as status:
        report = compare(
            artifact, against, content, status.update, weights_file, Kernels(settings.kernels), adapter or ()
        )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report), indent=1))
    else:
        facts: dict[str, object] = {
            "tokens": report.num_tokens,
            "largest logit difference": f"{report.max_logit_difference:.6f}",
            "mean KL divergence": f"{report.mean_kl:.3e} nats",
            "top-1 agreement": f"{report.top1_agreement:.2%}",
            "perplexity, checkpoint": f"{report.perplexity_checkpoint:.4f}",
            "perplexity, artifact": f"{report.perplexity_artifact:.4f}",
        }
        console = Console()
        console.print(facts_table("Artifact against checkpoint", facts))
        console.print(facts_table("Largest activation after each layer, checkpoint", _by_layers(report.layer_peaks)))
    if report.range_warning is not None:
        typer.echo(f"qwonnx: {report.range_warning}", err=True)
    # `not <=`, so that a KL that is not a number fails as well.
    if max_kl is not None and not report.mean_kl <= max_kl:
        typer.echo(f"qwonnx: the mean KL divergence {report.mean_kl:.3e} exceeds {max_kl:g}", err=True)
        raise typer.Exit(1)


def _by_layers(peaks: Sequence[float]) -> dict[str, object]:
    """Rows of a table, of a few layers each."""
    rows: dict[str, object] = {}
    for start in range(0, len(peaks), _LAYERS_IN_A_ROW):
        part = peaks[start : start + _LAYERS_IN_A_ROW]
        rows[f"layers {start} to {start + len(part) - 1}"] = "  ".join(f"{peak:.3g}" for peak in part)
    return rows
