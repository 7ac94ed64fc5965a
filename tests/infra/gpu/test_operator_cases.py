"""Operators are cut where two graphs share a value; the other graph computes the same from the same inputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infra.gpu import operator_cases
from infra.gpu.on_device.answers import first_difference
from infra.gpu.on_device.case import relative_error

pytestmark = pytest.mark.fast

SHARED = {"sum", "y", "z"}


def model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A graph from x to z, with a weight w."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "z")]
    weight = numpy_helper.from_array(np.array([2, 3], np.float32), "w")
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def node(op_type: str, inputs: str, output: str) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output])


FUSED = model(
    node("Mul", "x x", "square"),
    node("Add", "square w", "sum"),
    node("Relu", "sum", "y"),
    node("Relu", "y", "z"),
)
BODIES = model(
    node("Mul", "x x", "other"),
    node("Sum", "w other", "sum"),
    node("Max", "sum", "same"),
    node("Relu", "same", "y"),
    node("Relu", "y", "z"),
)


def test_nodes_with_a_value_of_their_own_are_one_case_and_equal_cases_are_tried_once() -> None:
    parts = list(operator_cases._parts(FUSED, SHARED))
    assert [(part.label, part.inputs, part.outputs) for part in parts] == [
        ("01-Add", ("x",), ("sum",)),
        ("02-Relu", ("sum",), ("y",)),
    ]


def test_another_graph_computes_a_case_from_its_inputs_alone() -> None:
    first, second = operator_cases._parts(FUSED, SHARED)
    x = np.array([-1, 2], np.float32)
    feeds = {"x": x, "sum": np.array([-5, 5], np.float32)}
    assert operator_cases._run(BODIES, first, feeds)["sum"].tolist() == [3, 7]
    assert operator_cases._run(BODIES, second, feeds)["y"].tolist() == [0, 5]  # not from x
    types = dict.fromkeys(("x", "sum"), "float")
    alone = first.model(FUSED, types, {"x": 1, "sum": 1})
    assert [tensor.name for tensor in alone.graph.initializer] == ["w"]
    onnx.checker.check_model(alone)


def test_an_error_is_relative_to_the_size_of_what_is_expected() -> None:
    expected = np.array([3, 4], np.float32)
    assert relative_error(expected, expected) == 0
    assert relative_error(np.array([3, 4.5], np.float16), expected) == pytest.approx(0.1)
    assert relative_error(np.array([3, np.nan], np.float32), expected) == float("inf")
    assert relative_error(np.array([1, 0], np.float32), np.zeros(2, np.float32)) == pytest.approx(0.5**0.5)
    # Two codes a byte, around 8: only the high ones differ, by one.
    assert relative_error(np.array([0x9A], np.uint8), np.array([0xAA], np.uint8)) == pytest.approx(0.5**0.5 / 2)


@pytest.mark.parametrize(("found", "place"), [([1, 2], None), ([1, 3], 1), ([1], 1), ([1, 2, 3], 2), ([], 0)], ids=repr)
def test_the_first_difference_of_two_answers(found: list[int], place: int | None) -> None:
    assert first_difference(found, [1, 2]) == place
