"""Counting models that several test modules share; each is written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtime.counting_model import CountingModel, make


@pytest.fixture(scope="session")
def counting_model(tmp_path_factory: pytest.TempPathFactory) -> CountingModel:
    """Two pairs of layers; counts forever."""
    return make(Path(tmp_path_factory.mktemp("counting")) / "artifact", num_pairs=2)


@pytest.fixture(scope="session")
def ending_model(tmp_path_factory: pytest.TempPathFactory) -> CountingModel:
    """Says <|im_end|> once a sequence has 24 tokens."""
    return make(Path(tmp_path_factory.mktemp("ending")) / "artifact", end_at=24)
