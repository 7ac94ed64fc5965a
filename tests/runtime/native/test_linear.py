"""Linear layers over blocks beside float64, beside their function bodies, and beside MatMulNBits."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.fused import tolerance_of_codes
from tests.runtime.native.reference import Node, product, product_bound, random_weight, session

ROUNDS = int(os.environ.get("QWONNX_TEST_NATIVE_ROUNDS", "1"))  # of random shapes; more for a long run
FORMS = [
    pytest.param(bits, block, zero_points, id=f"{bits} bits in {block}{' with zero points' if zero_points else ''}")
    for bits, block, zero_points in itertools.product((2, 4, 8), (16, 32, 64, 128, 256), (False, True))
]
LEVELS = {"int8": 4, "float32": 1}


def own_node(zero_points: bool, bits: int, level: int) -> Node:
    inputs = ["x", "w.codes", "w.scales", *(["w.zero_points"] if zero_points else [])]
    name = "AffineLinear" if zero_points else "QuantizedLinear"
    return Node(name, inputs, {"bits": bits, "accuracy_level": level})


@pytest.mark.parametrize(("bits", "block", "zero_points"), FORMS)
def test_products_are_within_the_rounding_bound(
    library: NativeLibrary, instructions: str, bits: int, block: int, zero_points: bool
) -> None:
    random = np.random.default_rng([bits, block, zero_points])
    shapes = [(1, 40, 1), (1, 64, 8), (2, 33, 3), (5, 16, 2), (9, 7, 5), (17, 50, 9), (70, 21, 11)]
    shapes += [(3, 65, 17), (4, 31, 5), (6, 40, 40), (7, 95, 3), (8, 100, 33)]
    for _ in range(ROUNDS):
        shapes += [(int(random.integers(1, 600)), int(random.integers(1, 100)), int(random.integers(1, 12)))]
    for num_tokens, rows, blocks in shapes:
        weight = random_weight(random, (rows, blocks * block), bits, block, zero_points)
        x = (random.standard_normal((num_tokens, blocks * block)) * random.uniform(0.1, 10)).astype(np.float32)
        x[:, : block // 2] *= 100  # blocks differ in size
        nodes = [own_node(zero_points, bits, level) for level in LEVELS.values()]
        outputs = session(nodes, ["x"], weight.tensors("w"), library).run(None, {"x": x})
        exact = product(x.astype(np.float64), weight)
        for level, output in zip(LEVELS, outputs, strict=True):
            assert output.shape == (num_tokens, rows)
            bound = product_bound(x.astype(np.float64), weight, int8=level == "int8")
            assert np.all(np.abs(output - exact) <= bound), (level, num_tokens, rows, blocks)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 128), (8, 128)])
def test_products_equal_those_of_onnx_runtimes_kernel(
    library: NativeLibrary, bits: int, block: int, zero_points: bool
) -> None:
    """Both quantise activations alike: they differ by float rounding, except where a code lay between two numbers."""
    random = np.random.default_rng(bits + block)
    weight = random_weight(random, (96, 2 * 256), bits, block, zero_points)
    attributes = {"N": 96, "K": 512, "bits": bits, "block_size": block, "accuracy_level": 4}
    own = own_node(zero_points, bits, 4)
    tensors = {**weight.tensors("w"), "w.codes": weight.codes.reshape(96, 512 // block, -1)}
    both = session([own, Node("MatMulNBits", own.inputs, attributes, "com.microsoft")], ["x"], tensors, library)
    for num_tokens in (1, 2, 4, 30):
        x = random.standard_normal((num_tokens, 512)).astype(np.float32)
        ours, theirs = both.run(None, {"x": x})
        assert np.quantile(np.abs(ours - theirs), 0.5) <= tolerance_of_codes(1e-5) * np.abs(theirs).max()
        assert np.all(np.abs(ours - theirs) <= 2 * product_bound(x.astype(np.float64), weight, int8=True))


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_function_body_defines_the_kernel(library: NativeLibrary, bits: int, zero_points: bool) -> None:
    """One graph, with and without the library: ONNX Runtime takes the kernel, or else the function's body."""
    from qwonnx.export.operators import op_bodies

    body = op_bodies.AffineLinear if zero_points else op_bodies.QuantizedLinear
    inner = ["DequantizeAffine", "UnpackAffine"] if zero_points else ["Dequantize", "Unpack"]
    names = [*inner, "UnpackBits", "Linear"]
    functions = [body.to_function_proto(), *(getattr(op_bodies, name).to_function_proto() for name in names)]
    random = np.random.default_rng(bits)
    weight = random_weight(random, (48, 256), bits, 32, zero_points)
    node = own_node(zero_points, bits, 1)
    plain = Node(node.op_type, node.inputs, {"bits": bits})
    x = random.standard_normal((2, 3, 256)).astype(np.float32)
    with_library, without = (
        session([plain], ["x"], weight.tensors("w"), used, functions).run(None, {"x": x})[0] for used in (library, None)
    )
    assert with_library.shape == without.shape == (2, 3, 48)
    assert np.allclose(with_library, without, rtol=0, atol=1e-5 * np.abs(without).max())


def test_no_tokens_give_no_outputs(library: NativeLibrary) -> None:
    weight = random_weight(np.random.default_rng(0), (16, 64), 4, 32, False)
    made = session([own_node(False, 4, 4)], ["x"], weight.tensors("w"), library)
    assert made.run(None, {"x": np.zeros((0, 64), np.float32)})[0].shape == (0, 16)
    assert made.run(None, {"x": np.zeros((2, 0, 64), np.float32)})[0].shape == (2, 0, 16)


@pytest.mark.parametrize("num_tokens", [1, 20])
@pytest.mark.parametrize("stray", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_not_hidden(
    library: NativeLibrary, instructions: str, stray: float, num_tokens: int
) -> None:
    weight = random_weight(np.random.default_rng(0), (20, 128), 4, 32, False)
    made = session([own_node(False, 4, level) for level in LEVELS.values()], ["x"], weight.tensors("w"), library)
    x = np.ones((num_tokens, 128), np.float32)
    x[-1, 70] = stray
    for output in made.run(None, {"x": x}):
        assert not np.isfinite(output[-1]).any()
        assert np.isfinite(output[:-1]).all()


def test_zeros_and_tiny_values_are_kept_near_zero(library: NativeLibrary, instructions: str) -> None:
    weight = random_weight(np.random.default_rng(0), (20, 128), 4, 32, False)
    made = session([own_node(False, 4, 4)], ["x"], weight.tensors("w"), library)
    for value in (0.0, 1e-40, 1e-36, -1e-38):
        output = made.run(None, {"x": np.full((3, 128), value, np.float32)})[0]
        assert np.all(np.abs(output) <= 128 * abs(value))


def test_results_do_not_depend_on_threads_or_on_repetition(library: NativeLibrary) -> None:
    random = np.random.default_rng(0)
    weight = random_weight(random, (300, 1024), 4, 128, False)
    made = session([own_node(False, 4, 4)], ["x"], weight.tensors("w"), library)
    for num_tokens in (1, 7, 40):
        x = random.standard_normal((num_tokens, 1024)).astype(np.float32)
        first = made.run(None, {"x": x})[0]
        assert all(np.array_equal(first, made.run(None, {"x": x})[0]) for _ in range(5))
