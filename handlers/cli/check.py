"""`qwonnx check`: what an export makes of a checkpoint, or why it refuses it."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console

from qwonnx.handlers.cli.arguments import checkpoint_of
from qwonnx.handlers.cli.choices import FIRST_TARGET, TargetName
from qwonnx.handlers.cli.notes import print_notes
from qwonnx.handlers.cli.tables import facts_table
from qwonnx.runtime.quantities import bytes_text


def check(
    checkpoint: Annotated[
        str, typer.Argument(help="As for `qwonnx export`: a folder, a GGUF file, a hub repo id, a URL.")
    ],
    adapter: Annotated[
        list[str] | None, typer.Option(help="As for `qwonnx export`; may be given several times.", metavar="ADAPTER")
    ] = None,
    target: Annotated[TargetName, typer.Option(help="As for `qwonnx export`.")] = FIRST_TARGET,
    requantize: Annotated[bool, typer.Option("--requantize", help="As for `qwonnx export`.")] = False,
    weights_file: Annotated[
        str | None, typer.Option(help="As for `qwonnx export`: a safetensors file or an index.", metavar="FILE")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Download nothing: use of the hub only what its cache has.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Say what an export would use, skip and change, and whether it refuses the checkpoint.

    Only headers and text files are read, from the hub or a URL too: it takes seconds for models of any size, and no
    torch. Exit status 1: an export refuses the checkpoint.

    Examples:

        qwonnx check ./checkpoint

        qwonnx check ./Qwen3.5-0.8B --adapter ./adapter --json

        qwonnx check s3://bucket/Qwen3.5-35B-A3B
    """
    from qwonnx.export.planning.check import check_checkpoint

    report = check_checkpoint(
        checkpoint_of(checkpoint),
        weights_file,
        adapter or (),
        revision=revision,
        offline=offline,
        target=target.value,
        requantize=requantize,
    )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False))
    else:
        console = Console()
        if (model := report.model) is not None:
            experts = f", {model.num_experts} experts" if model.num_experts else ""
            facts: dict[str, object] = {
                "model": f"{model.architecture}, {model.num_layers} layers{experts}",
                "stored as": model.dtype,
                "files": ", ".join(model.files[:3]) + (f" and {len(model.files) - 3} more" * (len(model.files) > 3)),
                "used": f"{model.num_tensors} tensors, {bytes_text(model.num_bytes)}",
            }
            if model.num_kept_codes:
                facts["codes"] = f"those of {model.num_kept_codes} weights are kept as they are"
            console.print(facts_table(report.name, facts))
        print_notes(console, report.skipped, report.notes)
        if report.unread:
            line = f"not read: {', '.join(report.unread[:6])}" + (", ..." if len(report.unread) > 6 else "")
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        verdict = "exported" if report.refusal is None else f"refused: {report.refusal}"
        console.print(verdict, markup=False, highlight=False, soft_wrap=True)
    if report.refusal is not None:
        raise typer.Exit(1)
