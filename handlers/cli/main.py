"""The `qwonnx` command. `qwonnx serve` starts without typer, because a server's start must be short."""

from __future__ import annotations

import sys

from qwonnx.handlers.cli.failures import one_line_errors
from qwonnx.handlers.environment import warnings_about

_INTERRUPTED = 130  # as a shell says it


def main() -> None:
    """The console script.

    Exit status: 0, 1 (`verify` found too large a loss, or `plan --fit` found nothing), 2 (user's error), 3 (`generate`
    was cut off before its answer had its form), 130 (Ctrl-C).
    """
    for warning in warnings_about():
        print(f"qwonnx: warning: {warning}", file=sys.stderr)
    words = sys.argv[1:]
    with one_line_errors():
        if words[:1] == ["serve"]:
            from qwonnx.handlers.cli.serve import serve

            try:
                serve(words[1:])
            except KeyboardInterrupt:  # before the server takes signals
                raise SystemExit(_INTERRUPTED) from None
            return

        from qwonnx.handlers.cli.command_line import command_line

        command_line(words)()
