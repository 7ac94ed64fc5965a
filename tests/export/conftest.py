"""Fixtures of the export's tests: the tiny checkpoint, exported every way that a test asks for, each once a session."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from qwonnx.export.checkpoint.config import ModelConfig
from qwonnx.export.modeling.stage_cut import StageCut
from qwonnx.export.modeling.trace import trace_decoder
from tests.export.dequantized import write_dequantized


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Products of tiny models gain nothing from a second thread of torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def traced() -> dict[tuple[ModelConfig, StageCut | None], ir.Model]:
    """The graphs that `traced_once` has traced so far."""
    return {}


@pytest.fixture(scope="module")
def traced_once(traced: dict[tuple[ModelConfig, StageCut | None], ir.Model]) -> Iterator[None]:
    """Trace each geometry once: tracing takes nearly all of a tiny export's time, and reads no weights."""

    def cached(config: ModelConfig, cut: StageCut | None = None) -> ir.Model:
        geometry = dataclasses.replace(config, quantization=None)
        if (geometry, cut) not in traced:
            traced[geometry, cut] = trace_decoder(geometry, cut)
        return traced[geometry, cut].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qwonnx.export.pipeline.trace_decoder", cached)
        yield


@pytest.fixture(scope="session")
def dequantized_tiny(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A copy of the tiny checkpoint whose weights went through a preset's quantisation and back, stored in float32."""
    made: dict[str, Path] = {}

    def dequantize(weights: str) -> Path:
        if weights not in made:
            made[weights] = write_dequantized(tiny_checkpoint, tmp_path_factory.mktemp("dequantized"), weights)
        return made[weights]

    return dequantize
