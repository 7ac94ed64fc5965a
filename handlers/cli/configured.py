"""Configuration files, applied to a command before it reads its options.

An option is stronger than a variable, a variable than a file, a file than a default. So settings of a file become
variables of this process where there are none; other options of a command's table become words in front of the given
ones.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from qwonnx.handlers.cli.command_spec import CommandSpec, OptionSpec
from qwonnx.handlers.cli.commands import COMMANDS, SERVERS
from qwonnx.handlers.configuration.environment import PREFIX
from qwonnx.handlers.configuration.file import (
    ALIASES,
    RUNTIME_FIELDS,
    SECRETS,
    SERVER_FIELDS,
    Entry,
    check_setting,
    read_files,
    setting_keys,
    unknown,
    variable_of,
)

# These do not open an engine: an option that has a setting's name means something else.
_WITHOUT_SETTINGS = frozenset({"check", "plan", "export", "pull", "list", "show", "rm", "config", "completion"})


@dataclass(frozen=True, slots=True)
class Configuration:
    """What files say to one command.

    settings: by variable.
    options: with what the command's table says of them.
    """

    settings: dict[str, Entry]
    options: list[tuple[OptionSpec, Entry]]


def read_configuration(files: Sequence[str], command: str) -> Configuration:
    """
    Raises:
        SettingsError: see read_files; or a key is unknown, or a setting's value malformed.
    """
    entries = read_files(files, (*COMMANDS, *SERVERS))
    settings: dict[str, Entry] = {}
    for entry in (each for each in entries if each.table is None):
        variable = variable_of(entry.key)
        if variable is None:
            raise unknown(entry, setting_keys(), _keys_of_commands())
        check_setting(entry, variable)
        settings[variable] = entry
    own = [entry for entry in entries if entry.table == command]
    if not own:
        return Configuration(settings, [])
    spec = spec_of(command)
    by_key = {option.key: option for option in spec.options if not option.is_argument and option.field != "help"}
    options = []
    for entry in own:
        option = by_key.get(entry.key)
        variable = _variable(entry, option, command)
        if variable is not None:
            check_setting(entry, variable)
            settings[variable] = entry
        elif option is not None:
            options.append((option, entry))
        else:
            more = () if command in _WITHOUT_SETTINGS else setting_keys()
            raise unknown(entry, (*by_key, *more), {})
    return Configuration(settings, options)


def apply(
    configuration: Configuration, words: Sequence[str], environment: MutableMapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Set variables that are not set, and return the words with those of the file, and options by where they are from.

    Args:
        configuration: of the command.
        words: the command, and what follows.
        environment: the variables; None is os.environ.
    """
    target = os.environ if environment is None else environment
    for variable, entry in configuration.settings.items():
        is_secret = variable.removeprefix(PREFIX).lower() in SECRETS
        if variable not in target or not (target[variable].strip() or is_secret):
            target[variable] = entry.text
    given = {word.partition("=")[0] for word in words}
    more, origins = [], {}
    for option, entry in configuration.options:
        if not given & {*option.names, *option.negatives}:
            more += _words(option, entry)
            origins[option.names[-1]] = entry.where
    return [words[0], *more, *words[1:]], origins


def spec_of(command: str) -> CommandSpec:
    """What a command takes; of a server, without typer."""
    if command in SERVERS:
        module = import_module(f"qwonnx.handlers.cli.{'serve_options' if command == 'serve' else SERVERS[command]}")
        spec: CommandSpec = module.parser().spec()
        return spec
    from qwonnx.handlers.cli import command_line

    return command_line.spec_of(command)


def _variable(entry: Entry, option: OptionSpec | None, command: str) -> str | None:
    """The variable that a table's entry stands for; None if it is an option that sets no setting."""
    if command in _WITHOUT_SETTINGS:
        return None
    if option is None:
        return variable_of(entry.key)
    field = option.field if command in SERVERS else {"threads": "num_threads"}.get(option.field, option.field)
    if command == "batch":
        field = ALIASES.get(field, field)
    is_setting = field in RUNTIME_FIELDS or (command in SERVERS and field in SERVER_FIELDS)
    return f"{PREFIX}{field.upper()}" if is_setting else None


def _words(option: OptionSpec, entry: Entry) -> list[str]:
    name = option.names[-1]
    if option.value is None:
        if entry.text.lower() in ("true", "1", "on", "yes"):
            return [name]
        return [option.negatives[-1]] if option.negatives else []
    values = entry.value if isinstance(entry.value, tuple) and option.repeats else (entry.text,)
    return [f"{name}={value}" for value in values]


def _keys_of_commands() -> dict[str, list[str]]:
    """Keys of each command's options, for an error's remedy; those of servers alone where typer is not installed."""
    from qwonnx.handlers.cli.commands import names

    every = names() if find_spec("typer") is not None else SERVERS
    # `serve` comes first: most have its options in mind.
    return {name: [option.key for option in spec_of(name).options] for name in sorted(every, key="serve".__ne__)}
