"""Constants that a lowering adds to a graph, one initializer for each value used."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx_ir as ir


def integers(graph: ir.Graph, values: list[int]) -> ir.Value:
    """An int64 vector."""
    name = "integers_" + "_".join(str(value) for value in values)
    return _initializer(graph, ir.tensor(values, dtype=ir.DataType.INT64, name=name))


def constant(graph: ir.Graph, name: str, values: npt.NDArray[Any]) -> ir.Value:
    """An array, under a name of its own."""
    return _initializer(graph, ir.tensor(values, name=name))


def _initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    assert tensor.name is not None
    if tensor.name not in graph.initializers:
        value = ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
        value.const_value = tensor
        graph.initializers[tensor.name] = value
    return graph.initializers[tensor.name]
