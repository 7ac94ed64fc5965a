"""Python's frameworks, in an interpreter of their own: they pin versions of much else.

    python -m venv clients && clients/bin/pip install openai-agents==0.24.0 langchain-openai==1.7.4 litellm==1.110.2 \
        "pydantic-ai-slim[openai]==2.68.0" dspy==3.4.1
    QWONNX_PYTHON_CLIENTS=$PWD/clients/bin/python make soak
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def interpreter() -> Path:
    """The interpreter that has the frameworks. Skips the test if there is none."""
    path = os.environ.get("QWONNX_PYTHON_CLIENTS", "")
    if not path or not Path(path).exists():
        pytest.skip(f"Python's frameworks are not installed: see {__name__}, QWONNX_PYTHON_CLIENTS")
    return Path(path)
