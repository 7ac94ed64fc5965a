"""The help of every command, in one look: plain text, at most 80 columns, examples at the end as they are typed."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator

from qwonnx.handlers.cli.command_spec import CommandSpec, OptionSpec

MAX_WIDTH = 80
_MIN_WIDTH = 40
_HELP_COLUMN = 28
_NARROW_COLUMN = 8
_UNBROKEN = "\N{NO-BREAK SPACE}"  # while lines are wrapped


def help_text(command: CommandSpec, width: int | None = None) -> str:
    """The help, with a line break at the end.

    Args:
        command: to describe.
        width: in columns; by default the terminal's, 80 at most. Examples are never wrapped.
    """
    columns = shutil.get_terminal_size((MAX_WIDTH, 24)).columns if width is None else width
    lines = _lines(command, max(_MIN_WIDTH, min(columns, MAX_WIDTH)))
    return "\n".join(lines).replace(_UNBROKEN, " ") + "\n"


def _lines(command: CommandSpec, width: int) -> Iterator[str]:
    yield from textwrap.wrap(f"Usage: {usage(command)}", width, subsequent_indent="  ")
    for paragraph in command.prose:
        yield ""
        yield from textwrap.wrap(paragraph, width, break_on_hyphens=False)
    if command.arguments:
        yield from ("", "Arguments:")
        yield from _table(((_left(each), _right(each)) for each in command.arguments), width)
    if command.subcommands:
        yield from ("", "Commands:")
        yield from _table(command.subcommands, width)
    options = [option for option in command.options if not option.is_argument]
    if options:
        yield from ("", "Options:")
        yield from _table(((_left(each), _right(each)) for each in options), width)
    if command.examples:
        yield from ("", "Examples:")
        yield from (f"  {line}" for line in command.examples)


def usage(command: CommandSpec) -> str:
    """The command with its arguments and the options that it needs."""
    words = [command.name]
    for each in command.arguments:
        word = each.names[0] + ("..." if each.repeats and not each.names[0].endswith("...") else "")
        words.append(word if each.is_required else f"[{word}]")
    if command.subcommands:
        words.append("COMMAND")
    words += [f"{each.names[-1]} {each.value}" for each in command.options if each.is_required and not each.is_argument]
    return " ".join((*words, "[OPTIONS]"))


def _left(option: OptionSpec) -> str:
    names = ", ".join((*option.names, *option.negatives))
    return names if option.is_argument or option.value is None else f"{names} {option.value}"


def _right(option: OptionSpec) -> str:
    text = option.help
    if option.choices and option.value not in (None, "|".join(option.choices)):
        text += f" One of: {', '.join(option.choices)}."
    return text if option.default is None else f"{text} [default:{_UNBROKEN}{option.default}]"


def _table(rows: Iterable[tuple[str, str]], width: int) -> Iterator[str]:
    column = _HELP_COLUMN if width >= MAX_WIDTH else _NARROW_COLUMN
    for left, right in rows:
        wrapped = textwrap.wrap(right, width - column, break_on_hyphens=False) or [""]
        if len(left) + 4 > column:
            yield from textwrap.wrap(left, width - 2, initial_indent="  ", subsequent_indent="    ")
        else:
            yield f"  {left}".ljust(column) + wrapped.pop(0)
        yield from (" " * column + line for line in wrapped)
