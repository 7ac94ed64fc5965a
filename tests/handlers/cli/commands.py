"""Run the `qwonnx` command in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

QWONNX = (sys.executable, "-c", "from qwonnx.handlers.cli.main import main; main()")
FAST = {"QWONNX_NUM_THREADS": "1", "QWONNX_SPIN": "0", "COLUMNS": "200"}


def qwonnx(*arguments: object, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*QWONNX, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=180,  # an export on a busy machine
        env={**os.environ, **FAST, **environment},
    )


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a user's error."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("qwonnx: error: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@contextmanager
def running(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*QWONNX, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **FAST, "PYTHONUNBUFFERED": "1", **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
