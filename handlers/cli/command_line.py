"""The subcommands of `qwonnx`, one per module.

A subcommand's module is imported when it is called, or when the help lists all. An installation that only serves may
lack qwonnx.export. It then has the commands that use an artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated

import typer

from qwonnx.handlers.cli import route, serve_options, stage
from qwonnx.handlers.cli.serve import serve

# By name: the module, and the function in it.
_COMMANDS = {
    "check": ("check", "check"),
    "plan": ("plan", "plan"),
    "export": ("export", "export"),
    "pull": ("pull", "pull"),
    "list": ("list_models", "list_models"),
    "show": ("show_model", "show"),
    "rm": ("remove_model", "remove"),
    "bake": ("bake", "bake"),
    "compile": ("compile", "compile_model"),
    "inspect": ("inspect", "inspect"),
    "verify": ("verify", "verify"),
    "eval": ("eval", "evaluate"),
    "generate": ("generate", "generate"),
    "chat": ("chat", "chat"),
    "batch": ("batch", "batch"),
    "bench": ("bench", "bench"),
}
# Servers read their own options.
_UNREAD = {"allow_extra_args": True, "ignore_unknown_options": True}
_EXPORTERS = ("check", "plan", "export", "pull", "verify", "eval")
_FIRST_STEPS = "First steps: qwonnx pull Qwen/Qwen3.5-0.8B, then qwonnx chat qwen3.5-0.8b."
_ONLY_SERVES = "This installation only serves: check, plan, export, pull, verify and eval need qwonnx.export."


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
    named = [name for name in (*names, "serve", "route", "stage") if name in words[:1]]
    for name in [name for name in names if name in named or not named]:
        module, function = _COMMANDS[name]
        command = getattr(import_module(f"qwonnx.handlers.cli.{module}"), function)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    servers = (
        ("serve", serve_options.HELP, serve),
        ("route", route.HELP, route.route),
        ("stage", stage.HELP, stage.stage),
    )
    for name, text, run in servers:
        app.command(name, help=text, context_settings=_UNREAD, add_help_option=False)(_reading_itself(run))
    return app


def _reading_itself(run: Callable[[Sequence[str]], None]) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        run(context.args)

    return command


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
