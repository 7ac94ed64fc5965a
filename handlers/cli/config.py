"""`qwonnx config`: every setting, its value, and where the value comes from."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console

from qwonnx.handlers.cli.commands import names
from qwonnx.handlers.cli.configured import Configuration, read_configuration
from qwonnx.handlers.cli.failures import CommandError
from qwonnx.handlers.cli.tables import add_row, numbers_table
from qwonnx.handlers.configuration.environment import PREFIX, variables
from qwonnx.handlers.configuration.file import SECRETS
from qwonnx.handlers.configuration.places import configuration_files

_DEFAULT = "default"
_HIDDEN = "(hidden)"


@dataclass(frozen=True, slots=True)
class Shown:
    """A setting as it is shown; a secret's value is hidden. source: "default", a variable, or a file."""

    name: str
    value: str
    source: str


def config(
    command: Annotated[str, typer.Argument(help="Also show what files say to this command.", metavar="[COMMAND]")] = "",
    every: Annotated[bool, typer.Option("--all", help="Show settings that have their default, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all settings as JSON.")] = False,
) -> None:
    """Show the settings that are not at their defaults, and where each comes from.

    A command's option is stronger than a variable (QWONNX_...), a variable than a file, and a file than the default.
    Files are ./qwonnx.toml and ~/.config/qwonnx/qwonnx.toml, or the one in QWONNX_CONFIG alone. Keys are not shown.

    Examples:

        qwonnx config

        qwonnx config serve --all
    """
    if command and command not in names():
        raise CommandError(f"there is no command {command!r}: give one of {', '.join(names())}")
    files = configuration_files()
    configuration = read_configuration(files, command or "config") if files else Configuration({}, [])
    shown = list(settings(configuration))
    if as_json:
        listed = [{"name": each.name, "value": each.value, "source": each.source} for each in shown]
        typer.echo(json.dumps({"files": list(files), "settings": listed}, indent=1, ensure_ascii=False))
        return
    typer.echo(f"Files: {', '.join(files) or 'none'}")
    chosen = [each for each in shown if every or each.source != _DEFAULT]
    if not chosen:
        typer.echo("All settings have their defaults: --all shows them")
        return
    table = numbers_table("setting", "value", "from")
    for column in table.columns:
        column.no_wrap, column.overflow, column.justify = False, "fold", "left"
    for each in chosen:
        add_row(table, each.name, each.value, each.source)
    Console().print(table)


def settings(configuration: Configuration) -> Iterator[Shown]:
    """All settings, then the options that a command's table has."""
    for variable in variables():
        field = variable.name.removeprefix(PREFIX).lower()
        given = os.environ.get(variable.name, "")
        is_secret = field in SECRETS
        if given.strip() or (is_secret and variable.name in os.environ):
            yield Shown(field, _HIDDEN if is_secret else _without_password(given), variable.name)
        elif (entry := configuration.settings.get(variable.name)) is not None:
            yield Shown(field, _HIDDEN if is_secret else _without_password(entry.text), entry.where)
        else:
            yield Shown(field, variable.default, _DEFAULT)
    for option, entry in configuration.options:
        yield Shown(option.names[-1], _without_password(entry.text), entry.where)


def _without_password(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://...@", text)
