"""`qwonnx pull`: download and export a model into the cache folder, in the recipe that suits this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from qwonnx.export.quantization.recipe import SHIPPED, Preset
from qwonnx.export.weight_files.memory_budget import check_memory
from qwonnx.handlers.cli.choices import FIRST_TARGET, TargetName
from qwonnx.handlers.cli.export_progress import export_progress
from qwonnx.handlers.cli.notes import print_notes
from qwonnx.handlers.models.store import ModelStore
from qwonnx.handlers.models.stored_models import Record
from qwonnx.runtime.quantities import bytes_text, parse_bytes


def pull(
    source: Annotated[
        str, typer.Argument(help="A hub repo id (owner/name, owner/name@revision), a folder, a GGUF file or a URL.")
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join((*Preset, *SHIPPED))}, or a TOML file; by default the one that suits this machine.",
            metavar="NAME|FILE",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; by default made from SOURCE.")] = None,
    target: Annotated[TargetName, typer.Option(help="As for `qwonnx export`.")] = FIRST_TARGET,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")] = None,
    memory: Annotated[str, typer.Option(help="As for `qwonnx export`.", metavar="BYTES")] = "2GB",
    force: Annotated[bool, typer.Option("--force", help="Export a model again that is there already.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="As for `qwonnx export`.")] = False,
) -> None:
    """Download and export a model into the cache folder, and give it a name.

    The name is good wherever an artifact's folder is. The recipe is that of `qwonnx export` if the model then fits the
    memory and the disk of this machine, else the most exact one that does. After an interruption, the same command goes
    on where it stopped. QWONNX_CACHE names another folder than ~/.cache/qwonnx.

    Examples:

        qwonnx pull Qwen/Qwen3.5-0.8B

        qwonnx pull Qwen/Qwen3.5-35B-A3B --recipe best

        qwonnx pull ./my-fine-tune --name assistant
    """
    memory_bytes = parse_bytes(memory, "--memory")
    check_memory(memory_bytes)
    console, started = Console(stderr=True), time.monotonic()
    begun, notes = list[Record](), list[str]()

    def on_choice(record: Record) -> None:
        begun.append(record)
        console.print(record.why, markup=False, highlight=False, soft_wrap=True)

    with _note_what_is_kept(begun), export_progress(console) as shown:
        made = ModelStore().add(
            source,
            recipe,
            revision=revision,
            target=target.value,
            name=name,
            offline=offline,
            again=force,
            memory_bytes=memory_bytes,
            on_progress=shown.show,
            on_choice=on_choice,
            on_note=notes.append,
        )
    print_notes(console, (), notes)
    if begun:
        typer.echo(f"{made.name}: {bytes_text(made.num_bytes)} in {time.monotonic() - started:.0f} s")
    else:
        typer.echo(f"{made.name} is there already: --force exports it again")
    typer.echo(f"Next: qwonnx chat {made.name}, or qwonnx serve {made.name}")


@contextmanager
def _note_what_is_kept(begun: list[Record]) -> Iterator[None]:
    """On Ctrl-C, say how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if begun:
            print("qwonnx: interrupted; what is written is kept: run the same command to go on", file=sys.stderr)
        raise
