"""Give a model the function bodies of the `ai.qwonnx` operators that it still uses."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnxscript import OnnxFunction

from qwonnx.export.operators import attention_bodies, op_bodies
from qwonnx.export.operators.ops import DOMAIN


def add_function_bodies(model: ir.Model) -> None:
    """Add the body of every used operator of ours, each after the bodies that it uses itself.

    Operators that have a function in the model keep it. onnx.reference needs this order, because it compiles the
    functions one after another.
    """
    present = {function.name: function for function in model.functions.values()}
    model.functions.clear()
    for name in used_operators(model.graph):
        _add(model, name, present)


def _add(model: ir.Model, name: str, present: Mapping[str, ir.Function]) -> None:
    if (DOMAIN, name, "") in model.functions:
        return
    function = present.get(name) or _body(name)
    for inner in used_operators(function):
        _add(model, inner, present)
    model.functions[function.identifier()] = function


def _body(name: str) -> ir.Function:
    body = getattr(op_bodies, name, None) or getattr(attention_bodies, name, None)
    assert isinstance(body, OnnxFunction), f"no body for {DOMAIN}::{name}"
    function = ir.from_proto(body.to_function_proto())
    assert isinstance(function, ir.Function)
    return function


def used_operators(graph: ir.Graph | ir.Function) -> list[str]:
    """The names of our operators that a graph and its subgraphs call, sorted."""
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    return sorted({node.op_type for node in nodes if node.domain == DOMAIN})
