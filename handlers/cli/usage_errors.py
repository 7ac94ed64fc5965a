"""Errors of words on the command line, in one look whichever parser found them: the cause, and where help is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any


def unknown_option(option: str, known: Iterable[str], command: str) -> str:
    name = option.partition("=")[0]
    return f"there is no option {_shown(name)}{_nearest(name, known)} ({command} --help)"


def unknown_command(name: str, known: Iterable[str], command: str) -> str:
    return f"there is no command {_shown(name)}{_nearest(name, known)} ({command} --help)"


def superfluous(word: str, command: str) -> str:
    return f"{_shown(word)} is one word too many ({command} --help)"


def missing(names: str, command: str) -> str:
    return f"{names} is missing ({command} --help)"


def missing_value(option: str, command: str) -> str:
    return f"{option} needs a value ({command} --help)"


def ambiguous_value(option: str, value: str, choices: Sequence[str], command: str) -> str:
    """A value that is none of the choices."""
    return f"{option}: {_shown(value)} is not one of {', '.join(choices)}{_nearest(value, choices)} ({command} --help)"


def wrong_value(option: str, reason: str, command: str) -> str:
    return f"{option}: {reason.rstrip('.')} ({command} --help)"


def of_click(error: Exception) -> str | None:
    """The line for an error of typer's parser; None for another error.

    Typer has a copy of click in some versions and depends on it in others, so the error is known by what it has.
    """
    if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
        return None
    context, kind = getattr(error, "ctx", None), type(error).__name__
    command = getattr(context, "command_path", None) or "qwonnx"
    message = " ".join(str(error.format_message()).split())
    if kind == "NoSuchOption":
        params = context.command.params if context is not None else ()
        known = [name for param in params for name in (*param.opts, *param.secondary_opts) if name.startswith("-")]
        return unknown_option(str(getattr(error, "option_name", "")), [*known, "--help"], command)
    if found := re.match(r"No such command '(.*?)'", message):
        return unknown_command(found[1], list(getattr(context.command, "commands", ())) if context else (), command)
    if found := re.match(r"Got unexpected extra arguments?(?:\(s\))? \((\S*)", message):
        return superfluous(found[1].rstrip(")"), command)
    if found := re.match(r"Option '(.*?)' requires an argument", message):
        return missing_value(found[1], command)
    if found := re.match(r"Option '(.*?)' does not take a value", message):
        return wrong_value(found[1], "it takes no value", command)
    if kind == "NoArgsIsHelpError":
        return missing(f"a command ({', '.join(context.command.commands)})" if context else "a command", command)
    option = _option_name(error)
    if kind == "MissingParameter":
        return missing(option or "an argument", command)
    if found := re.match(r"Invalid value(?: for .*?)?: (?:Value error, )?'(.*)' is not one of (.*?)\.?$", message):
        choices = [choice.strip().strip("'") for choice in found[2].split(",")]
        return ambiguous_value(option or "a value", found[1], choices, command)
    if found := re.match(r"Invalid value(?: for .*?)?: (.*)", message):
        return wrong_value(option or "a value", _plain_reason(found[1]), command)
    return f"{message.rstrip('.')} ({command} --help)"


def _option_name(error: Any) -> str | None:
    """The option or the argument that an error is about."""
    try:
        param = error.param
    except AttributeError:
        return None
    if param is None:
        return None
    if getattr(param, "param_type_name", "") == "argument":
        return str(getattr(param, "metavar", None) or getattr(param, "name", "")).upper()
    names = getattr(param, "opts", None)
    return str(names[-1]) if names else None


def _plain_reason(reason: str) -> str:
    """What a checker of values says, in the words of our own errors: click's, or pydantic's, which newer typers ask."""
    if found := re.match(r"Input should be (greater|less) than or equal to (\S+)", reason):
        return f"give at {'least' if found[1] == 'greater' else 'most'} {found[2].rstrip('.')}"
    if found := re.match(r"Input should be (a whole number|a valid integer|a valid number|a number)", reason):
        return f"give {found[1].replace('valid integer', 'whole number').replace('valid ', '')}"
    reason = reason.removeprefix("Value error, ")
    reason = reason.replace("a valid integer range", "a whole number").replace("a valid integer", "a whole number")
    reason = reason.replace("a valid float range", "a number").replace("a valid float", "a number")
    found = re.match(r"(\S+) is not in the range x([<>]=?)(\S+?)\.?$", reason)
    if found:
        return f"{found[1]} is out of range: give {'at least' if found[2][0] == '>' else 'at most'} {found[3]}"
    found = re.match(r"(\S+) is not in the range (\S+?)<=x<=(\S+?)\.?$", reason)
    return f"{found[1]} is out of range: give {found[2]} to {found[3]}" if found else reason


def _nearest(word: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), n=1)
    return f": did you mean {found[0]}?" if found else ""


def _shown(word: str) -> str:
    word = word if len(word) <= 80 else f"{word[:77]}..."
    return word if word.isprintable() and word and " " not in word else repr(word)
