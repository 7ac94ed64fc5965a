"""Where clients are installed: install.py's folder, unless variables say otherwise. Tests of others are skipped.

QWONNX_PYTHON_CLIENTS has interpreters, separated as PATH is; QWONNX_NODE_CLIENTS has a folder with node_modules.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.handlers.clients.install import DEFAULT
from tests.handlers.clients.programs import run

_ADVICE = "is not installed: make clients"


@cache
def interpreter(distribution: str) -> Path:
    """The interpreter that has a distribution. Skips the test if there is none."""
    named = os.environ.get("QWONNX_PYTHON_CLIENTS")
    paths = [Path(path) for path in named.split(os.pathsep)] if named else sorted(DEFAULT.glob("*/bin/python"))
    code = f"import importlib.metadata as metadata; metadata.version({distribution!r})"
    for path in paths:
        if path.exists() and subprocess.run([path, "-c", code], check=False, capture_output=True).returncode == 0:
            return path
    pytest.skip(f"{distribution} {_ADVICE}")


def node_modules(package: str) -> Path:
    """The folder node_modules that has a package. Skips the test if there is none."""
    modules = Path(os.environ.get("QWONNX_NODE_CLIENTS") or DEFAULT) / "node_modules"
    if not (modules / package).exists() or shutil.which("node") is None:
        pytest.skip(f"{package} {_ADVICE}")
    return modules


def node_program(package: str, program: str) -> Path:
    """A program that a package of node_modules has. Skips the test if the package is not there."""
    return node_modules(package) / ".bin" / program


def run_module(script: Path, package: str, folder: Path, *words: str, beside: tuple[Path, ...] = ()) -> str:
    """Run an ES module that imports a package, and return its output. Node looks for packages beside the file.

    Args:
        script: is copied into the folder.
        package: one that it imports. The test is skipped if it is not installed.
        folder: a new one, of this run.
        words: the script's.
        beside: files that it reads.

    Raises:
        AssertionError: it failed.
    """
    (folder / "node_modules").symlink_to(node_modules(package))
    for path in (script, *beside):
        shutil.copy(path, folder)
    return run(["node", script.name, *words], folder)
