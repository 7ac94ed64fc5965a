"""A parser of the standard library whose errors are the command line's, for commands that must start soon."""

from __future__ import annotations

import argparse
from typing import NoReturn

from qwonnx.handlers.cli.failures import CommandError

_MAX_PORT = 65535


class WordParser(argparse.ArgumentParser):
    """
    Raises:
        CommandError: by parse_args, if an option is unknown or not of its kind.
    """

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} ({self.prog} --help)")


def port_of(text: str) -> int:
    """A port's number, for `type`.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if text.isascii() and text.isdigit() and int(text) <= _MAX_PORT:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port: give 0 to {_MAX_PORT}")
