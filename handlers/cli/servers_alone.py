"""What `qwonnx`, `qwonnx --help` and `qwonnx --version` say where typer is not installed: only servers run there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from qwonnx.handlers.cli import route, serve_options, stage
from qwonnx.handlers.cli.command_spec import CommandSpec, OptionSpec
from qwonnx.handlers.cli.help_text import help_text
from qwonnx.runtime.install import how_to_install


def answer(words: Sequence[str]) -> str:
    """The text for no word, or for --help or --version."""
    if "--version" in words:
        return f"qwonnx {version('qwonnx')}"
    prose = (
        "Serve Qwen 3.5 models with ONNX Runtime.",
        f"This installation has only the servers. The extra cli adds the other commands: {how_to_install('cli')}",
    )
    options = (
        OptionSpec("version", ("--version",), "Print the version and exit."),
        OptionSpec("help", ("-h", "--help"), "Show this help."),
    )
    servers = (("serve", serve_options.HELP), ("route", route.HELP), ("stage", stage.HELP))
    example = "qwonnx serve ./artifact --port 8000"
    return help_text(CommandSpec("qwonnx", prose, (example,), options, servers)).rstrip()
