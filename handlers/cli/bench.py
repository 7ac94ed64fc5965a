"""`qwonnx bench`: measurements that users repeat on their machines."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from qwonnx.handlers.bench.cold_start import OURS, Comparison, Spread, compare, serve_command
from qwonnx.handlers.bench.errors import BenchError
from qwonnx.handlers.bench.start import PORT, Start
from qwonnx.handlers.bench.waterfall import picture
from qwonnx.handlers.cli.arguments import ArtifactArgument
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.tables import add_row, numbers_table
from qwonnx.runtime.artifact.folder import open_artifact

bench = typer.Typer(help="Measure on this machine: cold-start.", no_args_is_help=True)


@bench.callback()
def _several() -> None:
    """With a callback, a single command keeps its name."""


@bench.command("cold-start")
def cold_start(
    artifact: ArtifactArgument,
    options: Annotated[
        list[str] | None, typer.Argument(help="After --: those of `qwonnx serve`.", metavar="OPTION...")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Starts of each server.")] = 10,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another server's command, with {port} in it, that speaks OpenAI's API; may be given several times."
        ),
    ] = None,
    evict: Annotated[
        bool, typer.Option("--evict", help="Before each start, drop the weights from the system's memory (Linux).")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1, help="The longest time of one start.")] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    drawing: Annotated[Path | None, typer.Option("--picture", help="Draw the phases into this SVG file.")] = None,
) -> None:
    """Time starts of `qwonnx serve`, from the start of the process to the first streamed text.

    The servers start in turn, so that other work on the machine meets all alike. Wall times are worth little on a busy
    machine; processor times and ratios are worth more.

    Examples:

        qwonnx bench cold-start ./qwen-int4

        qwonnx bench cold-start ./qwen-int4 -- --threads 2

        qwonnx bench cold-start ./qwen-int4 --against "llama-server --port {port}"
    """
    commands = {OURS: serve_command(artifact, options or ())}
    for number, text in enumerate(against or (), 1):
        words = shlex.split(text)
        if not any(PORT in word for word in words):
            raise CommandError(f"--against {text!r} has no {PORT}: write it where the port belongs")
        commands[_name_of(words, number, commands)] = words
    files = [artifact / entry.path for entry in open_artifact(artifact).manifest.files]
    console = Console(stderr=True)

    def show(name: str, start: Start) -> None:
        if not as_json:
            console.print(f"{name}: {start.first_text_s:.3f} s, {start.cpu_s:.2f} s of processor time", highlight=False)

    try:
        found = compare(commands, files, runs=runs, seconds=seconds, evict=evict, on_start=show)
    except BenchError as error:
        raise CommandError(str(error)) from error
    if drawing is not None:
        try:
            drawing.write_text(picture(found), encoding="utf-8")
        except OSError as error:
            raise CommandError(f"cannot write {drawing} ({error.strerror}): give another file") from error
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found)))
    else:
        _print_tables(found)


def _name_of(words: list[str], number: int, taken: dict[str, list[str]]) -> str:
    name = Path(words[0]).name
    return f"{name} {number}" if name in taken else name


def _print_tables(found: Comparison) -> None:
    console = Console()
    table = numbers_table("least / median", *found.starts)
    starts = found.starts.values()
    add_row(table, "port accepts, s", *(_seconds(each.listening_s) for each in starts))
    add_row(table, "ready, s", *(_seconds(each.ready_s) for each in starts))
    add_row(table, "first text, s", *(_seconds(each.first_text_s) for each in starts))
    add_row(table, "processor time, s", *(_seconds(each.cpu_s) for each in starts))
    add_row(table, "memory, MB", *(_megabytes(each.resident_bytes) for each in starts))
    add_row(table, "of it anonymous, MB", *(_megabytes(each.anonymous_bytes) for each in starts))
    console.print(table)
    for name, each in found.starts.items():
        if each.phases:
            phases = numbers_table(f"phases of {name}", "begin, ms", "end, ms", "processor, ms")
            for phase in each.phases:
                times = (f"{1000 * value:.0f}" for value in (phase.begin, phase.end, phase.cpu_s))
                add_row(phases, phase.name, *times)
            console.print(phases)
    for name, ratio in found.first_text_over.items():
        console.print(f"{OURS} takes {ratio:.2f} times as long as {name} to the first text", highlight=False)


def _seconds(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.least:.3f} / {spread.median:.3f}"


def _megabytes(spread: Spread) -> str:
    return f"{spread.least / 1e6:.0f} / {spread.median / 1e6:.0f}"
