"""The `qwonnx` command: its subcommands, one per module.

A command imports torch and the engine only when it needs them, so that `qwonnx --help` is quick. An installation that
only serves may lack qwonnx.export: it then has the commands that use an artifact, and no others.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from qwonnx.handlers.cli.bake import bake
from qwonnx.handlers.cli.failures import one_line_errors
from qwonnx.handlers.cli.generate import generate
from qwonnx.handlers.cli.inspect import inspect
from qwonnx.handlers.cli.serve import serve

_EXPORTER = find_spec("qwonnx.export")
_FIRST_STEPS = "First steps: qwonnx export CHECKPOINT OUT, then qwonnx generate OUT --chat Hello, or qwonnx serve OUT."
_ONLY_SERVES = "This installation only serves: plan, export, verify and eval need qwonnx.export."

commands: dict[str, Callable[..., Any]] = {"bake": bake, "inspect": inspect, "generate": generate, "serve": serve}
if _EXPORTER is not None:
    from qwonnx.handlers.cli.eval import evaluate
    from qwonnx.handlers.cli.export import export
    from qwonnx.handlers.cli.plan import plan
    from qwonnx.handlers.cli.verify import verify

    commands |= {"plan": plan, "export": export, "verify": verify, "eval": evaluate}
_ORDER = ("plan", "export", "bake", "inspect", "verify", "eval", "generate", "serve")

app = typer.Typer(
    name="qwonnx",
    help="Export Qwen 3.5 models to ONNX, and serve them with ONNX Runtime.",
    epilog=_ONLY_SERVES if _EXPORTER is None else _FIRST_STEPS,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # a bug's traceback goes into a report: plain, and without values of variables
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name in _ORDER:
    if name in commands:
        app.command(name)(commands[name])


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
