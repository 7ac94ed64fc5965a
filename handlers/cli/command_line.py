"""The subcommands of `qwonnx`, one per module.

A subcommand's module is imported when it is called, or when the help lists all. An installation that only serves may
lack qwonnx.export. It then has the commands that use an artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from inspect import getdoc, unwrap
from typing import Annotated, Any

import typer
from typer.main import get_command

from qwonnx.handlers.cli import route, serve_options, stage
from qwonnx.handlers.cli.command_spec import CommandSpec, OptionSpec
from qwonnx.handlers.cli.commands import COMMANDS, names
from qwonnx.handlers.cli.help_text import help_text
from qwonnx.handlers.cli.serve import serve
from qwonnx.handlers.cli.typed_options import HELP, function_spec
from qwonnx.handlers.cli.word_parser import WordParser

# Servers read their own options.
_SERVERS: dict[str, tuple[str, Callable[[Sequence[str]], None], Callable[[], WordParser]]] = {
    "serve": (serve_options.HELP, serve, serve_options.parser),
    "route": (route.HELP, route.route, route.parser),
    "stage": (stage.HELP, stage.stage, stage.parser),
}
_UNREAD = {"allow_extra_args": True, "ignore_unknown_options": True}
_ONLY_SERVES = "This installation only serves: check, plan, export, pull, verify and eval need qwonnx.export."
_ROOT = "Export Qwen 3.5 models to ONNX, and serve them with ONNX Runtime."
_FIRST_STEPS = ("qwonnx pull Qwen/Qwen3.5-0.8B", "qwonnx chat qwen3.5-0.8b", "qwonnx serve qwen3.5-0.8b")
_VERSION = OptionSpec("version", ("--version",), "Print the version and exit.")


def run(words: Sequence[str]) -> int:
    """Run a command, and return its exit status.

    Raises:
        typer's errors of words that it does not understand (see usage_errors.py), and those of the command.
    """
    command = get_command(command_line(words))
    _tell_plainly(command, ("qwonnx",))
    status = command.main(args=list(words), prog_name="qwonnx", standalone_mode=False)
    return status if isinstance(status, int) else 0


def spec_of(name: str) -> CommandSpec:
    """What a command takes."""
    if name in _SERVERS:
        return _SERVERS[name][2]().spec()
    function = _function(name)
    if isinstance(function, typer.Typer):
        return _click_spec(get_command(function), ("qwonnx", name))
    return function_spec(f"qwonnx {name}", function)


def nested_spec(name: str, below: str) -> CommandSpec:
    """What a command below another one takes."""
    commands: dict[str, Any] = vars(get_command(_function(name)))["commands"]
    return _click_spec(commands[below], ("qwonnx", name, below))


def summaries() -> list[tuple[str, str]]:
    """All commands, with their first sentences."""
    return [(name, _summary(spec_of(name).prose[0])) for name in names()]


def command_line(words: Sequence[str] = ()) -> typer.Typer:
    """The command with its subcommands: with the one that the words begin with, or else with all."""
    app = typer.Typer(
        name="qwonnx",
        help=_ROOT,
        no_args_is_help=True,
        add_completion=False,  # completion.py has one for all commands
        rich_markup_mode=None,
        pretty_exceptions_enable=False,  # a bug's traceback goes into a report: plain, and without values of variables
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    known = names()
    named = [name for name in known if name in words[:1]]
    for name in [name for name in known if name in named or not named]:
        if name in _SERVERS:
            text, serves, _ = _SERVERS[name]
            app.command(name, help=text, context_settings=_UNREAD, add_help_option=False)(_reading_itself(serves))
            continue
        command = _function(name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _function(name: str) -> Any:
    module, function = COMMANDS[name]
    return getattr(import_module(f"qwonnx.handlers.cli.{module}"), function)


def _tell_plainly(command: Any, words: tuple[str, ...]) -> None:
    """Give a command of typer's, and those below it, our help."""

    def format_help(context: object, formatter: Any) -> None:
        formatter.write(help_text(_click_spec(command, words)))

    command.format_help = format_help
    for name, below in getattr(command, "commands", {}).items():
        if name not in _SERVERS:
            _tell_plainly(below, (*words, name))


def _click_spec(command: Any, words: tuple[str, ...]) -> CommandSpec:
    below: dict[str, Any] = getattr(command, "commands", {})
    if not below:
        return function_spec(" ".join(words), unwrap(command.callback))
    listed = tuple((name, _summary(each.help or getdoc(unwrap(each.callback)) or "")) for name, each in below.items())
    is_root = len(words) == 1
    prose = [str(command.help or "")]
    if is_root and find_spec("qwonnx.export") is None:
        prose.append(_ONLY_SERVES)
    examples = _FIRST_STEPS if is_root else tuple(_first_example(each, (*words, name)) for name, each in below.items())
    return CommandSpec(" ".join(words), tuple(prose), examples, (_VERSION, HELP) if is_root else (HELP,), listed)


def _summary(text: str) -> str:
    """The first sentence."""
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".:") + "."


def _first_example(command: Any, words: tuple[str, ...]) -> str:
    return function_spec(" ".join(words), unwrap(command.callback)).examples[0]


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
