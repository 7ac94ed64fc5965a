"""Programs of clients, run in a folder with a home of their own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_SECONDS = 240


def run(words: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """Run a program in a folder, with a home of its own. Returns its output, of both kinds.

    Raises:
        AssertionError: it failed.
    """
    ended = subprocess.run(
        words,
        cwd=folder,
        env=_environment(folder, environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@contextmanager
def running(words: Sequence[str | Path], folder: Path, **environment: str) -> Iterator[None]:
    """Run a program in the same way, and end it and its children with the context. Its output is not kept."""
    process = subprocess.Popen(
        words,
        cwd=folder,
        env=_environment(folder, environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(folder: Path, more: dict[str, str]) -> dict[str, str]:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return {"PATH": os.environ["PATH"], "HOME": str(home), **more}
