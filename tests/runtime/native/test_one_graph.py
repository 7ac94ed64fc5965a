"""One graph for both: a node of ours whose function body calls ONNX Runtime's kernel, attributes by reference.

With the library its kernel runs. Without it ONNX Runtime inlines the body, and the session is the one that a graph of
its own nodes would give: the same nodes after optimisation, and the same bits.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import AttributeProto, FunctionProto, TensorProto, helper, numpy_helper

from qwonnx.runtime.native.library import DOMAIN, NativeLibrary
from tests.runtime.native.fused import tolerance_of_codes
from tests.runtime.native.reference import random_weight

pytestmark = pytest.mark.fast

_HIDDEN, _INNER, _EXPERTS, _BLOCK = 128, 64, 8, 32
_OPSETS = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
_LINEAR = {
    "N": AttributeProto.INT,
    "K": AttributeProto.INT,
    "bits": AttributeProto.INT,
    "block_size": AttributeProto.INT,
    "accuracy_level": AttributeProto.INT,
}
# Of QMoE, by the names that our operator gives them.
_ROUTED = {
    "k": "top_k",
    "expert_weight_bits": "gate_up_bits",
    "fc2_expert_weight_bits": "down_bits",
    "block_size": "block_size",
    "accuracy_level": "accuracy_level",
}
_SWIGLU: dict[str, Any] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
    "normalize_routing_weights": 1,
}


def _reference(name: str, attribute: str, kind: int = AttributeProto.INT) -> AttributeProto:
    return AttributeProto(name=name, ref_attr_name=attribute, type=kind)  # type: ignore[arg-type]


def functions() -> list[FunctionProto]:
    linear = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft")
    linear.attribute.extend(_reference(name, name) for name in _LINEAR)
    inputs = ["x", "logits", "up", "up_scales", "down", "down_scales"]
    routed = helper.make_node("QMoE", [*inputs[:4], "", *inputs[4:]], ["y"], domain="com.microsoft", **_SWIGLU)
    routed.attribute.extend(_reference(name, own) for name, own in _ROUTED.items())
    return [
        helper.make_function(
            DOMAIN, "QuantizedLinear", ["x", "codes", "scales"], ["y"], [linear], _OPSETS[:2], list(_LINEAR)
        ),
        helper.make_function(DOMAIN, "QuantizedExperts", inputs, ["y"], [routed], _OPSETS[:2], list(_ROUTED.values())),
    ]


def graph(*, own: bool) -> onnx.ModelProto:
    """A residual layer: linear to logits, experts, and a linear layer again."""
    random = np.random.default_rng(0)
    constants: dict[str, Any] = {}
    for name, rows in (("router", _EXPERTS), ("out", _HIDDEN)):
        weight = random_weight(random, (rows, _HIDDEN), 4, _BLOCK, False)
        constants |= {
            f"{name}.codes": weight.codes.reshape(rows, _HIDDEN // _BLOCK, -1),
            f"{name}.scales": weight.scales,
        }
    for name, shape in (("up", (_EXPERTS, 2 * _INNER, _HIDDEN)), ("down", (_EXPERTS, _HIDDEN, _INNER))):
        constants |= random_weight(random, shape, 4, _BLOCK, False).tensors(name)

    def linear(x: str, name: str, rows: int, y: str) -> onnx.NodeProto:
        attributes = {"N": rows, "K": _HIDDEN, "bits": 4, "block_size": _BLOCK, "accuracy_level": 4}
        op_type, domain = ("QuantizedLinear", DOMAIN) if own else ("MatMulNBits", "com.microsoft")
        inputs = [x, f"{name}.codes", f"{name}.scales"]
        node: onnx.NodeProto = helper.make_node(op_type, inputs, [y], domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        return node

    values: dict[str, Any] = {
        "k": 2,
        "expert_weight_bits": 4,
        "fc2_expert_weight_bits": 4,
        "block_size": _BLOCK,
        "accuracy_level": 4,
    }
    weights = ["up.codes", "up.scales", "down.codes", "down.scales"]
    if own:
        routed = helper.make_node("QuantizedExperts", ["x", "logits", *weights], ["moe"], domain=DOMAIN)
        routed.attribute.extend(helper.make_attribute(_ROUTED[key], value) for key, value in values.items())
    else:
        inputs = ["x", "logits", *weights[:2], "", *weights[2:]]
        routed = helper.make_node("QMoE", inputs, ["moe"], domain="com.microsoft", **_SWIGLU, **values)
    nodes = [
        linear("x", "router", _EXPERTS, "logits"),
        routed,
        helper.make_node("Add", ["x", "moe"], ["sum"]),
        linear("sum", "out", _HIDDEN, "y"),
    ]
    made = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", _HIDDEN])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", _HIDDEN])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=_OPSETS, functions=functions() if own else [], ir_version=10)


def run(model: onnx.ModelProto, library: NativeLibrary | None, optimised: Path) -> tuple[Any, Counter[str]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.optimized_model_filepath = str(optimised)
    if library:
        library.register(options)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((5, _HIDDEN)).astype(np.float32)
    nodes = Counter(f"{node.domain}.{node.op_type}" for node in onnx.load(str(optimised)).graph.node)
    return session.run(None, {"x": x})[0], nodes


def test_without_the_library_the_graph_is_onnx_runtimes_own(tmp_path: Path) -> None:
    plain, plain_nodes = run(graph(own=False), None, tmp_path / "plain.onnx")
    output, nodes = run(graph(own=True), None, tmp_path / "own.onnx")
    assert np.array_equal(output, plain)
    assert nodes == plain_nodes


def test_with_the_library_its_kernels_run(library: NativeLibrary, tmp_path: Path) -> None:
    plain, _ = run(graph(own=False), None, tmp_path / "plain.onnx")
    output, nodes = run(graph(own=True), library, tmp_path / "own.onnx")
    assert nodes == {f"{DOMAIN}.QuantizedLinear": 2, f"{DOMAIN}.QuantizedExperts": 1, ".Add": 1}
    assert np.allclose(output, plain, rtol=0, atol=tolerance_of_codes(1e-4) * np.abs(plain).max())
