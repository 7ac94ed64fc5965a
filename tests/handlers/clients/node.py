"""Programs of npm packages, which somebody has installed.

    mkdir clients && cd clients && npm install openai@6.49.0 ai@6.0.326 @ai-sdk/openai@3.0.141 zod@4 \
        @langchain/openai@1.5.8 @langchain/core @openai/codex@0.171.0
    QWONNX_NODE_CLIENTS=$PWD make soak
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

_SECONDS = 120


def installed(name: str) -> Path:
    """The folder node_modules that has a package. Skips the test if there is none."""
    folder = os.environ.get("QWONNX_NODE_CLIENTS", "")
    modules = Path(folder) / "node_modules"
    if not folder or not (modules / name).exists() or shutil.which("node") is None:
        pytest.skip(f"{name} is not installed: see {__name__}, QWONNX_NODE_CLIENTS")
    return modules


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


def run_script(script: Path, modules: Path, folder: Path, *words: str) -> str:
    """Run an ES module that imports installed packages: node looks for them beside the file."""
    (folder / "node_modules").symlink_to(modules)
    shutil.copy(script, folder / script.name)
    return run(["node", script.name, *words], folder)
