"""The `qwonnx` command: its subcommands, one per module.

A subcommand's module is imported when it is called, or when the help lists all: `qwonnx serve` starts without the code
of the others. An installation that only serves may lack qwonnx.export. It then has the commands that use an artifact.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated

import typer

from qwonnx.handlers.cli.failures import one_line_errors
from qwonnx.handlers.environment import warnings_about

# By name: the module, and the function in it.
_COMMANDS = {
    "plan": ("plan", "plan"),
    "export": ("export", "export"),
    "bake": ("bake", "bake"),
    "compile": ("compile", "compile_model"),
    "inspect": ("inspect", "inspect"),
    "verify": ("verify", "verify"),
    "eval": ("eval", "evaluate"),
    "generate": ("generate", "generate"),
    "serve": ("serve", "serve"),
}
_EXPORTERS = ("plan", "export", "verify", "eval")
_FIRST_STEPS = "First steps: qwonnx export CHECKPOINT OUT, then qwonnx generate OUT --chat Hello, or qwonnx serve OUT."
_ONLY_SERVES = "This installation only serves: plan, export, verify and eval need qwonnx.export."


def command_line(words: Sequence[str] = ()) -> typer.Typer:
    """The command with its subcommands: with the one that the words begin with, or else with all."""
    only_serves = find_spec("qwonnx.export") is None
    names = [name for name in _COMMANDS if not (only_serves and name in _EXPORTERS)]
    app = typer.Typer(
        name="qwonnx",
        help="Export Qwen 3.5 models to ONNX, and serve them with ONNX Runtime.",
        epilog=_ONLY_SERVES if only_serves else _FIRST_STEPS,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,  # a bug's traceback goes into a report: plain, and without values of variables
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in [name for name in names if name in words[:1]] or names:
        module, function = _COMMANDS[name]
        app.command(name)(getattr(import_module(f"qwonnx.handlers.cli.{module}"), function))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qwonnx {version('qwonnx')}")
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script.

    Exit status: 0, 1 (`verify` found too large a loss, or `plan --fit` found nothing), 2 (user's error), 3 (`generate`
    was cut off before its answer had its form), 130 (Ctrl-C).
    """
    for warning in warnings_about():
        print(f"qwonnx: warning: {warning}", file=sys.stderr)
    with one_line_errors():
        command_line(sys.argv[1:])()
