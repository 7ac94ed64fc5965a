"""Servers that the tests of one session share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.handlers.serving import Served, serving
from tests.runtime import counting_model


@pytest.fixture(scope="session")
def counting_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that counts and never ends by itself."""
    return counting_model.make(tmp_path_factory.mktemp("counting") / "artifact").folder


@pytest.fixture(scope="session")
def served(counting_folder: Path) -> Iterator[Served]:
    """The counting model, served."""
    with serving(counting_folder) as server:
        yield server
