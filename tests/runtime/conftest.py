"""Counting models that several test modules share; each is written once per session, for both kinds of buffers."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwonnx.runtime.cache.buffers import BuffersFactory
from qwonnx.runtime.cache.host_buffers import HostBuffers
from tests.runtime.counting_model import CountingModel, make
from tests.runtime.strict_buffers import StrictBuffers


@pytest.fixture(scope="session", params=[HostBuffers, StrictBuffers], ids=["host", "strict"])
def make_buffers(request: pytest.FixtureRequest) -> BuffersFactory:
    """The memory of rows: a test that uses this, or a model below, runs on both kinds."""
    factory: BuffersFactory = request.param
    return factory


@pytest.fixture(scope="session")
def counting_model(make_buffers: BuffersFactory, tmp_path_factory: pytest.TempPathFactory) -> CountingModel:
    """Two pairs of layers; counts forever."""
    folder = Path(tmp_path_factory.mktemp("counting")) / "artifact"
    return make(folder, num_pairs=2, make_buffers=make_buffers)


@pytest.fixture(scope="session")
def ending_model(make_buffers: BuffersFactory, tmp_path_factory: pytest.TempPathFactory) -> CountingModel:
    """Says <|im_end|> once a sequence has 24 tokens."""
    return make(Path(tmp_path_factory.mktemp("ending")) / "artifact", end_at=24, make_buffers=make_buffers)
