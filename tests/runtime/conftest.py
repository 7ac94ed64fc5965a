"""Counting models that several test modules share; each is written once per session, for all kinds of buffers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import BuffersFactory
from qwonnx.runtime.cache.device_buffers import DeviceBuffers
from qwonnx.runtime.cache.host_buffers import HostBuffers
from qwonnx.runtime.cuda.device import CudaDevice
from tests.cuda_standin import stand_in
from tests.runtime.counting_model import CountingModel, make
from tests.runtime.strict_buffers import StrictBuffers


@cache
def _device() -> CudaDevice:
    return CudaDevice()


def on_device(states: Sequence[StateSpec], num_rows: int, max_model_len: int) -> DeviceBuffers:
    """Rows on the stand-in's device. Its memory is the host's, so a graph on the CPU computes with them."""
    return DeviceBuffers(states, num_rows, max_model_len, device=_device(), bound_device="cpu")


def apart_on_device(states: Sequence[StateSpec], num_rows: int, max_model_len: int) -> DeviceBuffers:
    """The same, for graphs that write states elsewhere than they read them."""
    return DeviceBuffers(states, num_rows, max_model_len, device=_device(), bound_device="cpu", in_place=False)


_ON_DEVICE = {"device": on_device, "device-apart": apart_on_device}
_KINDS = {"host": HostBuffers, "strict": StrictBuffers} | (_ON_DEVICE if stand_in.is_present() else {})


@pytest.fixture(scope="session", params=_KINDS.values(), ids=[*_KINDS])
def make_buffers(request: pytest.FixtureRequest) -> BuffersFactory:
    """The memory of rows: a test that uses this, or a model below, runs on each kind."""
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
