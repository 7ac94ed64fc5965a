"""Buffers too long for 32-bit indices: rows far behind the first, bound by pointer and indexed by kernels."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from qwonnx.export import ExportOptions, export_checkpoint
from qwonnx.runtime.artifact.folder import Artifact, open_artifact
from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.buffers import HostArray
from qwonnx.runtime.cache.hybrid_cache import HybridCache
from qwonnx.runtime.cache.rows import RowMove, is_growing, item_bytes, row_bytes
from qwonnx.runtime.errors import SettingsError
from qwonnx.runtime.model.runner import ModelRunner
from qwonnx.runtime.model.session import Session
from qwonnx.runtime.scheduling.sequence import Sequence, StepPlan
from qwonnx.runtime.settings import RuntimeSettings
from tests.runtime.cache.row_content import PythonGraph

# A row has 1,010,000 positions of 32 values, a buffer 9 GB in float32, of which the tests touch little.
MAX_MODEL_LEN = 1_010_000
PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module", params=["cpu-float32", "cpu-int8", "cpu-int4", "portable-float32"])
def artifact(
    request: pytest.FixtureRequest, long_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    target, kv = request.param.split("-")
    out = tmp_path_factory.mktemp("artifact") / str(request.param)
    export_checkpoint(long_checkpoint, out, ExportOptions(target=target, weights="fp32", kv=kv))
    return open_artifact(out)


def _num_rows(artifact: Artifact) -> int:
    """Rows with which a buffer has more than 2^31 elements."""
    return 140 if artifact.manifest.quantization.kv == "int4" else 72


@pytest.fixture
def cache(artifact: Artifact) -> HybridCache:
    try:
        cache = HybridCache(artifact.decoder.states, _num_rows(artifact), MAX_MODEL_LEN)
    except SettingsError:
        pytest.skip("this machine does not grant 19 GB of address space")
    key = _key(artifact)
    assert _num_rows(artifact) * row_bytes(key, MAX_MODEL_LEN) // item_bytes(key) > 1 << 31
    return cache


def _key(artifact: Artifact) -> StateSpec:
    """One of the largest states."""
    return next(spec for spec in artifact.decoder.states if is_growing(spec))


def _bound(cache: HybridCache, key: StateSpec, row: int) -> HostArray:
    """A state as a step of one row has it, `[1, num_key_value_heads, max_model_len, width]`."""
    graph = PythonGraph()
    cache.buffers.bind(graph, row, 1)
    return graph.inputs[key.past]


def _runner(artifact: Artifact, cache: HybridCache) -> ModelRunner:
    session = Session(artifact.file("decoder.onnx"), RuntimeSettings(num_threads=1))
    num_rows, vocab_size = _num_rows(artifact), artifact.manifest.model.vocab_size
    return ModelRunner(session, artifact.decoder.states, cache, num_rows, 16, vocab_size)


def _prefill(runner: ModelRunner, row: int, prompt: list[int]) -> tuple[Sequence, np.ndarray]:
    sequence = Sequence(str(row), [*prompt, 9], len(prompt))
    (logits,) = runner.run(StepPlan(row, (sequence,), len(prompt), wants_logits=True))
    sequence.num_computed = len(prompt)
    return sequence, logits.read_all().copy()


def test_rows_beyond_two_billion_elements_decode_like_the_first(artifact: Artifact, cache: HybridCache) -> None:
    runner, num_rows = _runner(artifact, cache), _num_rows(artifact)
    # Odd and even rows have different prompts, so that a wrong row is noticed.
    sequences, logits = zip(*(_prefill(runner, row, PROMPT[row % 2 :]) for row in range(num_rows)), strict=True)
    for row in range(2, num_rows):
        np.testing.assert_array_equal(logits[row], logits[row % 2])
    assert np.abs(logits[0] - logits[1]).max() > 0.1
    decoded = [logits.read_all() for logits in runner.run(StepPlan(0, sequences, 1, wants_logits=True))]
    for row in range(2, num_rows):
        np.testing.assert_allclose(decoded[row], decoded[row % 2], atol=1e-5, rtol=0)
    first, last = (_bound(cache, _key(artifact), row)[0, :, :5] for row in (1, num_rows - 1))
    np.testing.assert_allclose(last, first, atol=1e-5, rtol=0)
    assert first.any()


def test_a_row_moved_across_four_gigabytes_goes_on_as_before(artifact: Artifact, cache: HybridCache) -> None:
    runner, last = _runner(artifact, cache), _num_rows(artifact) - 1
    sequence, _ = _prefill(runner, last, PROMPT)
    stayed, _ = _prefill(runner, 1, PROMPT)
    cache.move(RowMove(last, 0, sequence.num_computed))
    decoded = [logits.read_all() for logits in runner.run(StepPlan(0, (sequence, stayed), 1, wants_logits=True))]
    np.testing.assert_allclose(decoded[0], decoded[1], atol=1e-5, rtol=0)


def test_no_step_copies_a_buffer(artifact: Artifact, cache: HybridCache) -> None:
    """One token and a chunk, below and above the size at which the CPU target changes its algorithm."""
    runner, last = _runner(artifact, cache), _num_rows(artifact) - 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sequence = Sequence("long", [7] * 400, 390)
    for width in (4, 1, *[16] * 24, 1, 1):
        runner.run(StepPlan(last, (sequence,), width, wants_logits=False))
        sequence.num_computed += width
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < _num_rows(artifact) * row_bytes(_key(artifact), MAX_MODEL_LEN) // 4


def test_pointers_are_counted_in_64_bits(artifact: Artifact, cache: HybridCache) -> None:
    key, last = _key(artifact), _num_rows(artifact)
    first, spare = (_bound(cache, key, row).ctypes.data for row in (0, last))
    assert spare - first == last * row_bytes(key, MAX_MODEL_LEN) > 1 << 31
