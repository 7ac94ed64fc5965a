"""Routed experts beside float64, beside their function body, and beside QMoE."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qwonnx.runtime.native.library import NativeLibrary
from tests.export.operators.single_op import run
from tests.runtime.native.fused import tolerance_of_codes
from tests.runtime.native.reference import Node, Weight, random_weight, routed_experts, session

SWIGLU: dict[str, Any] = {
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
    "normalize_routing_weights": 1,
}


def own_node(gate_up: Weight, down: Weight, top_k: int, level: int) -> Node:
    name = "QuantizedExperts" if gate_up.zero_points is None else "AffineExperts"
    inputs = ["x", "logits", *gate_up.tensors("gate_up"), *down.tensors("down")]
    attributes = {"top_k": top_k, "gate_up_bits": gate_up.bits, "down_bits": down.bits, "accuracy_level": level}
    return Node(name, inputs, attributes)


def weights(
    random: np.random.Generator,
    num_experts: int,
    hidden: int,
    inner: int,
    bits: tuple[int, int],
    block: int,
    zeros: bool,
) -> tuple[Weight, Weight]:
    gate_up = random_weight(random, (num_experts, 2 * inner, hidden), bits[0], block, zeros)
    return gate_up, random_weight(random, (num_experts, hidden, inner), bits[1], block, zeros)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("bits", [(4, 4), (4, 8), (8, 8), (2, 4)])
def test_outputs_are_within_the_rounding_bound(
    library: NativeLibrary, instructions: str, bits: tuple[int, int], zero_points: bool
) -> None:
    random = np.random.default_rng([*bits, zero_points])
    for num_experts, hidden, inner, block, top_k in ((4, 64, 32, 32, 2), (9, 128, 128, 64, 9), (16, 96, 48, 16, 3)):
        gate_up, down = weights(random, num_experts, hidden, inner, bits, block, zero_points)
        nodes = [own_node(gate_up, down, top_k, level) for level in (4, 1)]
        made = session(nodes, ["x", "logits"], {**gate_up.tensors("gate_up"), **down.tensors("down")}, library)
        for num_tokens in (1, 3, 18, 150):
            x = random.standard_normal((num_tokens, hidden)).astype(np.float32)
            logits = (random.standard_normal((num_tokens, num_experts)) * 2).astype(np.float32)
            outputs = made.run(None, {"x": x, "logits": logits})
            for int8, output in zip((True, False), outputs, strict=True):
                wide = x.astype(np.float64), logits.astype(np.float64)
                expected = routed_experts(*wide, gate_up, down, top_k, int8=int8)
                assert np.all(np.abs(output - expected.output) <= expected.bound), (int8, num_tokens, num_experts)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_equal_those_of_onnx_runtimes_kernel(library: NativeLibrary, bits: int, zero_points: bool) -> None:
    random = np.random.default_rng(bits)
    gate_up, down = weights(random, 16, 256, 128, (bits, bits), 64, zero_points)
    own = own_node(gate_up, down, 4, 4)
    up, low = list(gate_up.tensors("gate_up")), list(down.tensors("down"))
    inputs = ["x", "logits", *up[:2], "", *low[:2], *(["", "", "", "", up[2], low[2]] if zero_points else [])]
    attributes = SWIGLU | {"k": 4, "expert_weight_bits": bits, "fc2_expert_weight_bits": bits, "block_size": 64}
    theirs = Node("QMoE", inputs, attributes | {"accuracy_level": 4}, "com.microsoft")
    tensors = {**gate_up.tensors("gate_up"), **down.tensors("down")}
    both = session([own, theirs], ["x", "logits"], tensors, library)
    for num_tokens in (1, 5, 64):
        x = random.standard_normal((num_tokens, 256)).astype(np.float32)
        logits = random.standard_normal((num_tokens, 16)).astype(np.float32)
        first, second = both.run(None, {"x": x, "logits": logits})
        assert np.quantile(np.abs(first - second), 0.5) <= tolerance_of_codes(2e-5) * np.abs(second).max()
        assert np.abs(first - second).max() <= 2.5 * tolerance_of_codes(8e-3) * np.abs(second).max()


@pytest.mark.parametrize("zero_points", [False, True])
def test_the_function_body_defines_the_kernel(library: NativeLibrary, zero_points: bool) -> None:
    """The body also computes the logits, from the router's weight."""
    kind = "Affine" if zero_points else "Quantized"
    random = np.random.default_rng(1)
    gate_up, down = weights(random, 8, 64, 32, (4, 8), 32, zero_points)
    router = random.standard_normal((8, 64)).astype(np.float32)
    x = random.standard_normal((2, 5, 64)).astype(np.float32)
    tensors = {**gate_up.tensors("gate_up"), **down.tensors("down")}
    attributes: dict[str, Any] = {"top_k": 3, "gate_up_bits": 4, "down_bits": 8}
    inputs = {"x": x, "router": router, **{name.replace(".", "_"): value for name, value in tensors.items()}}
    (expected,) = run("onnxruntime", f"{kind}RoutedExperts", inputs, **attributes)
    own = session([own_node(gate_up, down, 3, 1)], ["x", "logits"], tensors, library)
    output = own.run(None, {"x": x, "logits": (x @ router.T).reshape(10, 8)})[0]
    assert output.shape == expected.shape == x.shape
    assert np.allclose(output, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_first_of_equal_logits_is_chosen_and_nan_never_leaves_the_experts(library: NativeLibrary) -> None:
    random = np.random.default_rng(2)
    gate_up, down = weights(random, 8, 64, 32, (4, 4), 32, False)
    tensors = {**gate_up.tensors("gate_up"), **down.tensors("down")}
    made = session([own_node(gate_up, down, 2, 1)], ["x", "logits"], tensors, library)
    x = random.standard_normal((1, 64)).astype(np.float32)
    equal = made.run(None, {"x": x, "logits": np.zeros((1, 8), np.float32)})[0]
    first = np.full((1, 8), -50, np.float32)
    first[0, :2] = 0
    assert np.array_equal(equal, made.run(None, {"x": x, "logits": first})[0])
    for logits in (np.full((1, 8), np.nan), np.full((1, 8), np.inf), np.full((1, 8), -np.inf)):
        made.run(None, {"x": x, "logits": logits.astype(np.float32)})  # any result, and no crash


def test_all_tokens_may_choose_one_expert_and_none_may_come(library: NativeLibrary, instructions: str) -> None:
    random = np.random.default_rng(3)
    gate_up, down = weights(random, 8, 64, 32, (4, 4), 32, False)
    tensors = {**gate_up.tensors("gate_up"), **down.tensors("down")}
    made = session([own_node(gate_up, down, 1, 1)], ["x", "logits"], tensors, library)
    assert made.run(None, {"x": np.zeros((0, 64), np.float32), "logits": np.zeros((0, 8), np.float32)})[0].shape == (
        0,
        64,
    )
    x = random.standard_normal((200, 64)).astype(np.float32)
    logits = np.zeros((200, 8), np.float32)
    logits[:, 5] = 9
    expected = routed_experts(x.astype(np.float64), logits.astype(np.float64), gate_up, down, 1, int8=False)
    assert np.all(np.abs(made.run(None, {"x": x, "logits": logits})[0] - expected.output) <= expected.bound)
