"""Fixtures of all tests: the tiny checkpoint is made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import write_tiny


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default tiny checkpoint (MoE, nested, BF16, one file), seed 0. Read only: copy it to change it."""
    return write_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")
