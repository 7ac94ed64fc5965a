"""A parser of the standard library with the command line's errors and help, for commands that must start soon."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, NoReturn

from qwonnx.handlers.cli.failures import CommandError

if TYPE_CHECKING:  # the help is seldom asked for
    from qwonnx.handlers.cli.command_spec import CommandSpec, OptionSpec

_MAX_PORT = 65535


class WordParser(argparse.ArgumentParser):
    """
    Args:
        name: of the command, "qwonnx serve".
        description: paragraphs, and lines after "Examples:".

    Raises:
        CommandError: by parse_args, if an option is unknown or not of its kind.
    """

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=name, description=description, allow_abbrev=False, add_help=False)
        self.add_argument("-h", "--help", action="help", help="show this help")

    def error(self, message: str) -> NoReturn:
        raise CommandError(self._plain(message))

    def format_help(self) -> str:
        from qwonnx.handlers.cli.help_text import help_text

        return help_text(self.spec())

    def spec(self) -> CommandSpec:
        """What the command takes."""
        from qwonnx.handlers.cli.command_spec import CommandSpec, prose_and_examples
        from qwonnx.handlers.configuration.environment import setting_defaults

        defaults = setting_defaults()
        actions = sorted(self._actions, key=lambda action: action.dest == "help")  # it comes last
        prose, examples = prose_and_examples(self.description or "")
        return CommandSpec(self.prog, prose, examples, tuple(_option(action, defaults) for action in actions))

    def _plain(self, message: str) -> str:
        """An error of the standard library in our words."""
        from qwonnx.handlers.cli.usage_errors import (
            ambiguous_value,
            missing,
            missing_value,
            superfluous,
            unknown_option,
            wrong_value,
        )

        names = [name for action in self._actions for name in action.option_strings]
        if found := re.fullmatch(r"unrecognized arguments: (.*)", message, re.DOTALL):
            word = found[1].split()[0] if found[1].split() else found[1]
            return unknown_option(word, names, self.prog) if word.startswith("-") else superfluous(word, self.prog)
        if found := re.fullmatch(r"the following arguments are required: (.*)", message):
            return missing(found[1], self.prog)
        if found := re.fullmatch(r"argument ([^:]*): expected (?:one|at least one) argument", message):
            return missing_value(found[1].rpartition("/")[2], self.prog)
        if found := re.fullmatch(r"argument ([^:]*): invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL):
            choices = [choice.strip().strip("'") for choice in found[3].split(",")]
            return ambiguous_value(found[1], found[2], choices, self.prog)
        if found := re.fullmatch(r"argument ([^:]*): invalid (int|float) value: '(.*)'", message, re.DOTALL):
            kind = {"int": "a whole number", "float": "a number"}[found[2]]
            return wrong_value(found[1], f"{found[3]!r} is not {kind}", self.prog)
        if found := re.fullmatch(r"argument ([^:]*): (.*)", message, re.DOTALL):
            return wrong_value(found[1], found[2], self.prog)
        return f"{message} ({self.prog} --help)"


def _option(action: argparse.Action, defaults: dict[str, str]) -> OptionSpec:
    from qwonnx.handlers.cli.command_spec import OptionSpec

    is_switch = action.nargs == 0
    choices = tuple(map(str, action.choices or ()))
    joined = "|".join(choices)
    metavar = action.metavar if isinstance(action.metavar, str) else None
    value = metavar or (joined if 0 < len(joined) <= 32 else _VALUES.get(action.dest, action.dest.upper()))
    given = action.default if action.default not in (None, False, argparse.SUPPRESS) else defaults.get(action.dest)
    text = action.help or ""
    return OptionSpec(
        field=action.dest,
        names=tuple(action.option_strings) or (metavar or action.dest.upper(),),
        help=text[:1].upper() + text[1:] + ("" if text.endswith((".", ")")) or not text else "."),
        value=None if is_switch else value,
        default=None if is_switch or given in (None, "") else str(given),
        choices=choices,
        is_argument=not action.option_strings,
        is_required=action.required,
        repeats=isinstance(action, argparse._AppendAction),
    )


_VALUES = {"host": "ADDRESS", "port": "PORT", "device": "DEVICE", "to": "PLACES"}


def port_of(text: str) -> int:
    """A port's number, for `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if text.isascii() and text.isdigit() and int(text) <= _MAX_PORT:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port: give 0 to {_MAX_PORT}")
