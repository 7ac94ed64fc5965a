"""Text files that are given to commands."""

from __future__ import annotations

from pathlib import Path

from qwonnx.handlers.cli.failures import CommandError
from qwonnx.runtime.quantities import bytes_text

MAX_BYTES = 64 << 20


def read_text(path: Path) -> str:
    """The text of a UTF-8 file of at most 64 MiB.

    Raises:
        CommandError: it cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CommandError(f"cannot read {path} ({error.strerror}): give a text file") from error
    if len(content) > MAX_BYTES:
        raise CommandError(f"{path} is larger than {bytes_text(MAX_BYTES)}: give a shorter text")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not UTF-8 text: convert it") from error
