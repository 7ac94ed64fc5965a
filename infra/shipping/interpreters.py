"""Interpreters of Python on this machine: on the PATH, of pyenv, of uv, and those that are named."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SECONDS = 30.0
# Its minor version in full, and whether it can make virtual environments.
_LOOK = "import sys, venv; print('%d.%d' % sys.version_info[:2], '%d.%d.%d' % sys.version_info[:3])"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """minor: such as "3.12". version: such as "3.12.1"."""

    path: Path
    minor: str
    version: str


def look_at(path: Path) -> Interpreter | None:
    """What an interpreter is; None if it does not run, or cannot make virtual environments."""
    try:
        run = subprocess.run([str(path), "-c", _LOOK], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if run.returncode:
        return None
    minor, version = run.stdout.split()
    return Interpreter(path, minor, version)


def find_interpreters(minors: Iterable[str], named: Iterable[Path] = ()) -> dict[str, Interpreter]:
    """The first interpreter of each minor version that runs; those that are named come first.

    Raises:
        SystemExit: one that is named does not run.
    """
    found: dict[str, Interpreter] = {}
    for path in named:
        known = look_at(path)
        if known is None:
            raise SystemExit(f"{path} does not run, or has no module venv: name another interpreter")
        found.setdefault(known.minor, known)
    for minor in minors:
        for path in _candidates(minor):
            if minor in found:
                break
            known = look_at(path)
            if known is not None and known.minor == minor:
                found[minor] = known
    return found


def _candidates(minor: str) -> Iterable[Path]:
    on_path = shutil.which(f"python{minor}")
    if on_path is not None:
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", Path.home() / ".local" / "share" / "uv" / "python"))
    for folder in (*sorted(pyenv.glob(f"{minor}.*"), reverse=True), *sorted(uv.glob(f"cpython-{minor}.*"))):
        yield folder / "bin" / f"python{minor}"
