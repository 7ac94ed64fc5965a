"""The shapes that an engine is built for, against the graph that they are for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from qwonnx.runtime.artifact.compiled import StepLimits
from qwonnx.runtime.artifact.manifest import GraphSpec, TensorSpec
from qwonnx.runtime.errors import SessionError
from qwonnx.runtime.model.shapes import shape_profile
from tests.runtime.artifact.compiled_models import portable

pytestmark = pytest.mark.fast

LIMITS = StepLimits(max_num_seqs=3, max_num_batched_tokens=5, max_model_len=16)


def test_every_input_has_its_shapes_and_the_graph_runs_with_them(tmp_path: Path) -> None:
    artifact = portable(tmp_path / "artifact")
    profile = shape_profile(artifact.decoder, LIMITS)
    session = onnxruntime.InferenceSession(str(artifact.folder / "decoder.onnx"), providers=["CPUExecutionProvider"])
    types = {value.name: value.type for value in session.get_inputs()}
    for text, rows, columns in ((profile.least, 1, 1), (profile.usual, 1, 1), (profile.largest, 3, 5)):
        shapes = {name: tuple(map(int, sizes.split("x"))) for name, sizes in (e.split(":") for e in text.split(","))}
        assert shapes.keys() == types.keys()
        assert shapes["input_ids"] == (rows, columns)
        assert shapes["logit_positions"] == (1,)
        kinds = {"tensor(int64)": "int64", "tensor(float)": "float32"}
        feeds = {name: np.zeros(shape, kinds[types[name]]) for name, shape in shapes.items()}
        feeds["input_ids"][...] = 5  # the counting model fails at the first tokens
        logits = session.run(["logits"], feeds)[0]
        assert logits.shape[:2] == (rows, 1)


def test_a_number_that_decides_shapes_has_values() -> None:
    """A parser that reads it on the host takes values where others have sizes."""
    graph = GraphSpec("decoder.onnx", (TensorSpec("total_sequence_length", "int32", ()),), (), (), ())
    profile = shape_profile(graph, LIMITS)
    assert (profile.least, profile.usual) == ("total_sequence_length:1", "total_sequence_length:16")
    assert profile.largest == profile.usual


def test_an_axis_of_another_graph_is_named() -> None:
    graph = GraphSpec("vision.onnx", (TensorSpec("pixels", "float32", ("patches", 3)),), (), (), ())
    with pytest.raises(SessionError, match="has an axis patches"):
        shape_profile(graph, LIMITS)
