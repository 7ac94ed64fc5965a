"""Programs of npm packages, which somebody has installed.

    mkdir clients && cd clients && npm install openai@6.49.0 ai@6.0.326 @ai-sdk/openai@3.0.141 zod@4 \
        @langchain/openai@1.5.8 @langchain/core @openai/codex@0.171.0
    npm install @anthropic-ai/claude-code@2.1.197 @qwen-code/qwen-code@0.15.10 opencode-ai@1.18.33 \
        @mariozechner/pi-coding-agent@0.73.1 @continuedev/cli@1.5.47
    QWONNX_NODE_CLIENTS=$PWD make soak
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.handlers.clients.programs import run


def installed(name: str) -> Path:
    """The folder node_modules that has a package. Skips the test if there is none."""
    folder = os.environ.get("QWONNX_NODE_CLIENTS", "")
    modules = Path(folder) / "node_modules"
    if not folder or not (modules / name).exists() or shutil.which("node") is None:
        pytest.skip(f"{name} is not installed: see {__name__}, QWONNX_NODE_CLIENTS")
    return modules


def run_script(script: Path, modules: Path, folder: Path, *words: str) -> str:
    """Run an ES module that imports installed packages: node looks for them beside the file."""
    (folder / "node_modules").symlink_to(modules)
    shutil.copy(script, folder / script.name)
    return run(["node", script.name, *words], folder)
