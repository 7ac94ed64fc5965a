"""The `qwonnx` command: its subcommands, one per module.

A command imports modules of the exporter and of the engine only when it needs them, so that `qwonnx --help` is quick
and a machine that only serves does not need torch.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from qwonnx.handlers.cli.bake import bake
from qwonnx.handlers.cli.eval import evaluate
from qwonnx.handlers.cli.export import export
from qwonnx.handlers.cli.failures import one_line_errors
from qwonnx.handlers.cli.generate import generate
from qwonnx.handlers.cli.inspect import inspect
from qwonnx.handlers.cli.plan import plan
from qwonnx.handlers.cli.serve import serve
from qwonnx.handlers.cli.verify import verify

app = typer.Typer(
    name="qwonnx",
    help="Export Qwen 3.5 models to ONNX, and serve them with ONNX Runtime.",
    epilog="First steps: qwonnx export CHECKPOINT OUT, then qwonnx generate OUT --chat Hello, or qwonnx serve OUT.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # a bug's traceback goes into a report: plain, and without values of variables
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (plan, export, bake, inspect, verify, evaluate, generate, serve):
    app.command("eval" if command is evaluate else None)(command)  # eval is a builtin of Python


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qwonnx {version('qwonnx')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script.

    Exit status: 0, 1 (`verify` found too large a loss, or `plan --fit` found nothing), 2 (user's error), 130 (Ctrl-C).
    """
    with one_line_errors():
        app()
