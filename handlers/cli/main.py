"""The `qwonnx` command. Servers start without typer, because their start must be short."""

from __future__ import annotations

import sys
from importlib import import_module

from qwonnx.handlers.cli.failures import one_line_errors
from qwonnx.handlers.configuration.environment import warnings_about

_INTERRUPTED = 130  # as a shell says it
# Servers, which read their own options.
_SOON = {
    "serve": "qwonnx.handlers.cli.serve:serve",
    "route": "qwonnx.handlers.cli.route:route",
    "stage": "qwonnx.handlers.cli.stage:stage",
}


def main() -> None:
    """The console script.

    Exit status: 0, 1 (`verify` found too large a loss, or `plan --fit` found nothing), 2 (user's error), 3 (`generate`
    was cut off before its answer had its form), 130 (Ctrl-C).
    """
    for warning in warnings_about():
        print(f"qwonnx: warning: {warning}", file=sys.stderr)
    words = sys.argv[1:]
    with one_line_errors():
        if words and words[0] in _SOON:
            module, _, function = _SOON[words[0]].partition(":")
            try:
                getattr(import_module(module), function)(words[1:])
            except KeyboardInterrupt:  # before the server takes signals
                raise SystemExit(_INTERRUPTED) from None
            return

        from qwonnx.handlers.cli.command_line import run

        if not words:
            words = ["--help"]
        raise SystemExit(run(words))
