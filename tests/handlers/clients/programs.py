"""Programs of clients, run in a folder with a home of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

_SECONDS = 120


def run(words: Sequence[str | Path], folder: Path, **environment: str) -> str:
    """Run a program in a folder, with a home of its own. Returns its output, of both kinds.

    Raises:
        AssertionError: it failed.
    """
    home = folder / "home"
    home.mkdir(exist_ok=True)
    ended = subprocess.run(
        words,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout
