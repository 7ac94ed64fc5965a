"""Several graphs in one artifact: separate states, common weight files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from qwonnx.export.checkpoint.resolved_checkpoint import ResolvedCheckpoint, resolve_checkpoint
from qwonnx.export.checkpoint.weight_source import WeightSource
from qwonnx.export.errors import RecipeError
from qwonnx.export.lowering.shared_weights import SharedWeights
from qwonnx.export.modeling.trace import trace_decoder
from qwonnx.export.quantization.recipe import Recipe, Rule, Storages
from qwonnx.export.targets.lowered_graph import LoweredGraph, lower_decoder
from qwonnx.export.targets.register import choose_target
from qwonnx.export.weight_files.external_data import ExternalDataWriter
from qwonnx.export.weight_files.weight_stage import write_weights
from qwonnx.runtime.artifact.manifest import GraphSpec
from tests.export.decoder import Decoder

INT4 = Recipe.preset("int4", 64)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> ResolvedCheckpoint:
    return resolve_checkpoint(str(tiny_checkpoint), None)


@pytest.fixture(scope="module")
def model(checkpoint: ResolvedCheckpoint) -> ir.Model:
    return trace_decoder(checkpoint.config)


def _lowered(checkpoint: ResolvedCheckpoint, model: ir.Model, storages: Storages, target: str = "cpu") -> LoweredGraph:
    return lower_decoder(model.clone(), storages, checkpoint.config, choose_target(target, "float32"))


def test_what_two_graphs_use_is_stored_once_and_both_run_on_it(
    checkpoint: ResolvedCheckpoint, model: ir.Model, tmp_path: Path
) -> None:
    """Portable stores each weight alone, so a graph with other weights joined would not share: two of one target do."""
    first, second = (_lowered(checkpoint, model, INT4) for _ in range(2))
    weights = SharedWeights([first.weights, second.weights])
    assert list(weights.items) == first.weights.items()
    written = write_weights(
        WeightSource(checkpoint.tensors, checkpoint.config), weights.items, ExternalDataWriter(tmp_path)
    )
    weights.attach(written)
    prompt = np.arange(7)[None]
    logits = []
    for name, graph in (("decoder", first), ("draft", second)):
        (tmp_path / f"{name}.onnx").write_bytes(graph.serialized())
        session = ort.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        logits.append(Decoder(_Graph(graph.spec), session=session).step(prompt))
    np.testing.assert_array_equal(logits[0], logits[1])
    alone = sum(item.num_bytes for item in first.weights.items())
    stored = sum(path.stat().st_size for path in tmp_path.glob("weights-*.bin"))
    assert alone <= stored < 1.15 * alone  # padded to pages


def test_a_graph_adds_the_weights_that_no_other_has(checkpoint: ResolvedCheckpoint, model: ir.Model) -> None:
    """The CPU target joins small projections under a name of their own; those that stand alone are shared."""
    joined, alone = (_lowered(checkpoint, model, INT4, target) for target in ("cpu", "portable"))
    weights = SharedWeights([joined.weights, alone.weights])
    names = [item.name for item in weights.items]
    assert len(set(names)) == len(names)
    assert set(names) == {item.name for table in (joined, alone) for item in table.weights.items()}
    assert len(names) < len(joined.weights.items()) + len(alone.weights.items())
    assert weights.names == SharedWeights([alone.weights]).names


def test_one_name_stored_in_two_ways_is_refused(checkpoint: ResolvedCheckpoint, model: ir.Model) -> None:
    other = dataclasses.replace(INT4, rules=(Rule("lm_head.weight", 8),))
    tables = [_lowered(checkpoint, model, recipe).weights for recipe in (INT4, other)]
    with pytest.raises(RecipeError, match=r"lm_head\.weight in different ways"):
        SharedWeights(tables)


@dataclasses.dataclass(frozen=True)
class _Graph:
    """The part of an artifact that Decoder needs."""

    decoder: GraphSpec
