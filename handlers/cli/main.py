"""The `qwonnx` command. Servers start without typer, because their start must be short."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec

from qwonnx.handlers.cli.commands import COMMANDS, COMPLETE, SERVERS
from qwonnx.handlers.cli.failures import one_line_errors
from qwonnx.handlers.configuration.environment import warnings_about
from qwonnx.handlers.configuration.places import configuration_files

_INTERRUPTED = 130  # as a shell says it


def main() -> None:
    """The console script.

    Exit status: 0, 1 (`verify` found another model, or `plan --fit` found nothing), 2 (user's error), 3 (`generate` was
    cut off before its answer had its form, or `verify` cannot tell), 130 (Ctrl-C).
    """
    for warning in warnings_about():
        print(f"qwonnx: warning: {warning}", file=sys.stderr)
    words, origins = sys.argv[1:], dict[str, str]()
    with one_line_errors(origins):
        if words and words[0] == COMPLETE:
            from qwonnx.handlers.cli.completion import print_candidates

            print_candidates(words[1:])
            return
        if words and words[0] != "config" and (words[0] in COMMANDS or words[0] in SERVERS):
            words = _configured(words, origins)
        if words and words[0] in SERVERS:
            name = SERVERS[words[0]]
            try:
                getattr(import_module(f"qwonnx.handlers.cli.{name}"), name)(words[1:])
            except KeyboardInterrupt:  # before the server takes signals
                raise SystemExit(_INTERRUPTED) from None
            return

        if len(words) < 2 and (not words or words[0] in ("-h", "--help", "--version")) and find_spec("typer") is None:
            from qwonnx.handlers.cli.servers_alone import answer

            print(answer(words))
            return

        from qwonnx.handlers.cli.command_line import run

        if not words:
            words = ["--help"]
        raise SystemExit(run(words))


def _configured(words: list[str], origins: dict[str, str]) -> list[str]:
    """The words with what configuration files add, if there are any; `origins` gets the file of each added option."""
    files = configuration_files()
    if not files or "--help" in words or "-h" in words:
        return words
    from qwonnx.handlers.cli.configured import apply, read_configuration

    words, found = apply(read_configuration(files, words[0]), words)
    origins.update(found)
    return words
