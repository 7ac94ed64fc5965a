"""The check of a graph against the table of CUDA kernels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import pytest

from qwonnx.export.targets.cuda_kernels import cuda_kernels, without_kernel

pytestmark = pytest.mark.fast

FLOAT, HALF, BYTES, IDS = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.UINT8, ir.DataType.INT64
MICROSOFT = "com.microsoft"
NOTHING = ir.Graph([], [], nodes=[])


def model(
    op_type: str, inputs: Sequence[ir.DataType | None], domain: str = "", num_outputs: int = 1, **attributes: Any
) -> ir.Model:
    """A graph of one node, and of a Cast of its first output to float32."""
    values = [None if kind is None else ir.val(f"x{i}", kind, [4]) for i, kind in enumerate(inputs)]
    outputs = [ir.Value(name=f"y{index}") for index in range(num_outputs)]
    node = ir.node(op_type, values, attributes, domain=domain, outputs=outputs)
    cast = ir.node("Cast", [outputs[0]], {"to": FLOAT.value})
    given = [value for value in values if value is not None]
    return ir.Model(
        ir.Graph(given, [*cast.outputs], nodes=[node, cast], opset_imports={"": 23, MICROSOFT: 1}), ir_version=10
    )


def test_the_table_is_that_of_a_release() -> None:
    kernels = cuda_kernels()
    assert sum(map(len, kernels.values())) > 800
    for op_type in ("QMoE", "MatMulNBits", "GroupQueryAttention", "GatedDeltaNet", "CausalConvWithState", "GatedAdd"):
        assert kernels[MICROSOFT, op_type]
    assert ("", "BitShift") not in kernels


@pytest.mark.parametrize(
    "sound",
    [
        model("Relu", [HALF]),
        model("MatMulNBits", [HALF, BYTES, HALF], MICROSOFT, N=4, K=32, bits=4, block_size=32),
        model("Gather", [HALF, IDS], axis=0),
        model("TopK", [HALF, IDS], num_outputs=2),
        model("GatedDeltaNet", [HALF, None, None, None, FLOAT, FLOAT, FLOAT, FLOAT, FLOAT], MICROSOFT, 2),
    ],
    ids=lambda sound: sound.graph.node(0).op_type,
)
def test_nodes_with_kernels_pass(sound: ir.Model) -> None:
    assert without_kernel(sound) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (model("BitShift", [BYTES, BYTES], direction="LEFT"), r"ai.onnx::BitShift \(y0\) has no CUDA kernel"),
        (model("RoutedExperts", [HALF], "ai.qwonnx"), r"ai.qwonnx::RoutedExperts \(y0\) is no operator"),
        (model("QMoE", [FLOAT, FLOAT, BYTES, FLOAT, None, BYTES, FLOAT], MICROSOFT), r"QMoE.*no CUDA kernel.* T float"),
        (model("MatMulNBits", [HALF, BYTES, FLOAT], MICROSOFT), r"MatMulNBits \(y0\) has T1 as float16 and as float"),
        (model("ReduceMax", [ir.DataType.STRING, IDS]), r"ReduceMax"),
        (
            model("If", [ir.DataType.BOOL], "", 1, then_branch=NOTHING, else_branch=NOTHING),
            r"If \(y0\) has a graph inside: a step with control flow cannot be captured",
        ),
    ],
    ids=lambda value: value.graph.node(0).op_type if isinstance(value, ir.Model) else "",
)
def test_nodes_without_kernels_are_named(wrong: ir.Model, message: str) -> None:
    line = without_kernel(wrong)[0]
    assert re.search(message, line), line


def test_types_follow_through_nodes_that_nobody_typed() -> None:
    """The Cast behind TopK's indices needs their type, which no input has."""
    found = model("TopK", [HALF, IDS], num_outputs=2)
    cast = found.graph.node(1)
    cast.replace_input_with(0, found.graph.node(0).outputs[1])
    assert without_kernel(found) == []
