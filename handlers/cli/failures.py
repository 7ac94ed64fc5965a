"""Errors of the command line: one line if the user can fix the error, a traceback for our bugs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from qwonnx.runtime.artifact.manifest import ArtifactError
from qwonnx.runtime.errors import QwonnxRuntimeError
from qwonnx.runtime.install import how_to_install

# The extra that installs each package, by import name.
_EXTRA_OF = {
    "huggingface_hub": "export",
    "ray": "ray",
    "rich": "cli",
    "typer": "cli",
    "onnx": "export",
    "onnx_ir": "export",
    "onnxruntime": "cpu",
    "onnxscript": "export",
    "optimum": "export",
    "safetensors": "export",
    "torch": "export",
    "transformers": "export",
}


class CommandError(Exception):
    """A command cannot use its input. The message names the cause and the remedy, in one line."""


@contextmanager
def one_line_errors(origins: Mapping[str, str] | None = None) -> Iterator[None]:
    """Turn errors that users can fix into one line on stderr and exit status 2; let others through.

    Args:
        origins: the file of each option that a configuration file gave: an error about the option names it.
    """
    try:
        yield
    except Exception as error:
        message = _message_of(error)
        if message is None:
            raise
        for option, file in (origins or {}).items():
            if message.startswith(option):
                message = f"{file}: {message}"
        print(f"qwonnx: error: {' '.join(message.split())}", file=sys.stderr)
        raise SystemExit(2) from error


def _message_of(error: Exception) -> str | None:
    """The line for users, or None if they cannot fix the error."""
    if isinstance(error, (CommandError, QwonnxRuntimeError, ArtifactError, *_export_errors())):
        return str(error)
    if "typer" in sys.modules:
        from qwonnx.handlers.cli.usage_errors import of_click

        if (message := of_click(error)) is not None:
            return message
    if isinstance(error, MemoryError):
        return "there is not enough memory: close other programs, or use less of it"
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = _EXTRA_OF.get(package)
        if extra is not None:
            return f"{package} is not installed: {how_to_install(extra)}"
    return None


def _export_errors() -> tuple[type[Exception], ...]:
    """The exporter's errors; empty if it was not imported, because it cannot have raised then."""
    module = sys.modules.get("qwonnx.export.errors")
    return () if module is None else (module.ExportError,)
