"""The operators of a linear-attention layer beside their function bodies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qwonnx.runtime.native.library import DOMAIN, NativeLibrary
from tests.export.operators.single_op import run

Array = NDArray[np.float32]

ROUNDS = int(os.environ.get("QWONNX_TEST_NATIVE_ROUNDS", "1"))  # of random shapes; more for a long run
_OUTPUTS = {"GatedDeltaRule": 2, "CausalConv": 2, "GatedRMSNorm": 1}
_STATES = {"GatedDeltaRule": 5, "CausalConv": 2}  # the input that the second output follows


def session_of(
    op_type: str, inputs: Sequence[str], attributes: Mapping[str, Any], library: NativeLibrary, threads: int = 2
) -> Any:
    """A graph of one node whose inputs have any shape."""
    outputs = [f"y{i}" for i in range(_OUTPUTS[op_type])]
    node = helper.make_node(op_type, list(inputs), outputs, domain=DOMAIN, **attributes)
    before, after = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names] for names in (inputs, outputs)
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], "graph", before, after), opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    library.register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_in_place(session: Any, op_type: str, inputs: Mapping[str, Array], y_shape: Sequence[int]) -> list[Array]:
    """As the runtime binds it: the present state is the memory of the past one."""
    state = list(inputs.values())[_STATES[op_type]].copy()
    y = np.full(y_shape, np.nan, np.float32)
    binding = session.io_binding()
    for index, (name, value) in enumerate(inputs.items()):
        bound = state if index == _STATES[op_type] else value
        binding.bind_input(name, "cpu", 0, np.float32, bound.shape, bound.ctypes.data)
    for name, bound in (("y0", y), ("y1", state)):
        binding.bind_output(name, "cpu", 0, np.float32, bound.shape, bound.ctypes.data)
    session.run_with_iobinding(binding)
    return [y, state]


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of a delta rule."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int


def delta_inputs(
    random: np.random.Generator, batch: int, num_tokens: int, heads: Heads, decay_scale: float = -1.0
) -> dict[str, Array]:
    width = 2 * heads.key_heads * heads.key_dim + heads.value_heads * heads.value_dim
    shapes = {
        "qkv": (batch, num_tokens, width),
        "b": (batch, num_tokens, heads.value_heads),
        "a": (batch, num_tokens, heads.value_heads),
        "decay_scale": (heads.value_heads,),
        "dt_bias": (heads.value_heads,),
        "past_state": (batch, heads.value_heads, heads.key_dim, heads.value_dim),
    }
    inputs = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    inputs["decay_scale"] = (decay_scale * random.uniform(0, 2, heads.value_heads)).astype(np.float32)
    return inputs


def exact_delta_rule(inputs: dict[str, Array], heads: Heads) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The delta rule in float64, token by token: y and the present state."""
    qkv, b, a, decay_scale, dt_bias, state = (value.astype(np.float64) for value in inputs.values())
    keys = heads.key_heads * heads.key_dim
    query, key = (
        np.repeat(part.reshape(*part.shape[:2], heads.key_heads, -1), heads.value_heads // heads.key_heads, 2)
        for part in (qkv[..., :keys], qkv[..., keys : 2 * keys])
    )
    query, key = (part / np.sqrt(np.square(part).sum(-1, keepdims=True) + DELTA["epsilon"]) for part in (query, key))
    value = qkv[..., 2 * keys :].reshape(*qkv.shape[:2], heads.value_heads, -1)
    decay = np.exp(decay_scale * np.logaddexp(a + dt_bias, 0))
    beta = 1 / (1 + np.exp(-b))
    outputs = []
    for token in range(qkv.shape[1]):
        state = state * decay[:, token, :, None, None]
        remembered = np.einsum("bhk,bhkv->bhv", key[:, token], state)
        change = (value[:, token] - remembered) * beta[:, token, :, None]
        state = state + key[:, token, :, :, None] * change[:, :, None, :]
        outputs.append(np.einsum("bhk,bhkv->bhv", query[:, token], state) / np.sqrt(heads.key_dim))
    return np.stack(outputs, 1).reshape(*qkv.shape[:2], -1), state


def conv_inputs(random: np.random.Generator, batch: int, num_tokens: int, channels: int, taps: int) -> dict[str, Array]:
    shapes = {
        "x": (batch, num_tokens, channels),
        "weight": (channels, 1, taps),
        "past_state": (batch, channels, taps - 1),
    }
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def assert_body(
    library: NativeLibrary, op_type: str, inputs: dict[str, Array], relative: float = 1e-5, **attributes: Any
) -> None:
    """The kernel yields what the body yields; with states in place too, where it has one."""
    expected = run("onnxruntime", op_type, inputs, _OUTPUTS[op_type], **attributes)
    session = session_of(op_type, list(inputs), attributes, library)
    results = [session.run(None, inputs)]
    if op_type in _STATES and min(expected[0].size, expected[1].size):
        results.append(run_in_place(session, op_type, inputs, expected[0].shape))
    for result in results:
        for output, right in zip(result, expected, strict=True):
            assert output.shape == right.shape
            most = np.abs(right).max(initial=1e-30)
            assert np.allclose(output, right, rtol=0, atol=relative * most), np.abs(output - right).max() / most
    if len(results) == 2:
        assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


DELTA = {"epsilon": 1e-6}


@pytest.mark.parametrize("decay_scale", [-0.01, -1.0, -30.0, 0.05])
def test_the_delta_rule_is_its_body(library: NativeLibrary, instructions: str, decay_scale: float) -> None:
    random = np.random.default_rng(int(abs(decay_scale) * 100))
    cases = [
        (1, 1, Heads(1, 1, 4, 4)),
        (3, 1, Heads(2, 4, 64, 32)),
        (2, 2, Heads(2, 6, 16, 40)),
        (2, 17, Heads(1, 2, 33, 7)),
        (1, 90, Heads(2, 4, 128, 128)),
    ]
    for _ in range(ROUNDS):
        key_heads, each = (int(n) for n in random.integers(1, 4, 2))
        dims = [int(n) for n in random.integers(1, 140, 2)]
        tokens = int(random.integers(1, 60 if decay_scale > 0 else 600))
        cases.append((int(random.integers(1, 4)), tokens, Heads(key_heads, key_heads * each, *dims)))
    for batch, num_tokens, heads in cases:
        inputs = delta_inputs(random, batch, num_tokens, heads, decay_scale)
        attributes = {"num_key_heads": heads.key_heads, **DELTA}
        assert_body(library, "GatedDeltaRule", inputs, 2e-5, **attributes)  # both sides round
        results = session_of("GatedDeltaRule", list(inputs), attributes, library).run(None, inputs)
        for output, exact in zip(results, exact_delta_rule(inputs, heads), strict=True):
            assert np.abs(output - exact).max() <= 1e-5 * np.abs(exact).max()


def test_the_delta_rule_keeps_a_state_that_does_not_decay_and_forgets_one_that_does(
    library: NativeLibrary, instructions: str
) -> None:
    """decay is 1, or falls to 0 within a chunk; keys and values are zero, so that nothing is added."""
    heads = Heads(1, 2, 16, 32)
    session = session_of("GatedDeltaRule", list("abcdef"), {"num_key_heads": 1, **DELTA}, library)
    for num_tokens in (1, 2, 40):
        inputs = delta_inputs(np.random.default_rng(0), 2, num_tokens, heads, 0.0)
        inputs["qkv"][:] = 0
        values = dict(zip("abcdef", inputs.values(), strict=True))
        assert np.array_equal(session.run(None, values)[1], inputs["past_state"])
        values["d"] = np.full(2, -1e30, np.float32)
        y, state = session.run(None, values)
        assert np.abs(state).max() < 1e-36
        assert np.array_equal(y, np.zeros_like(y))


def test_a_decay_of_many_orders_of_magnitude_within_a_chunk_loses_nothing(
    library: NativeLibrary, instructions: str
) -> None:
    """Tokens that decay strongly and others take turns, so that the deferred factor is often multiplied in."""
    random = np.random.default_rng(5)
    heads = Heads(2, 4, 32, 64)
    inputs = delta_inputs(random, 2, 200, heads, -1.0)
    inputs["a"] = random.choice(np.array([-30, -5, 0, 5, 40], np.float32), inputs["a"].shape)
    inputs["decay_scale"][:] = -1
    assert_body(library, "GatedDeltaRule", inputs, 2e-5, num_key_heads=2, **DELTA)


def test_chunks_of_the_delta_rule_continue_each_other(library: NativeLibrary, instructions: str) -> None:
    heads = Heads(2, 4, 32, 32)
    inputs = delta_inputs(np.random.default_rng(6), 1, 50, heads, -0.1)
    session = session_of("GatedDeltaRule", list(inputs), {"num_key_heads": 2, **DELTA}, library)
    y, state = session.run(None, inputs)
    parts, past = [], inputs["past_state"]
    for first, last in ((0, 1), (1, 2), (2, 30), (30, 50)):
        part = {n: v[:, first:last] if n in ("qkv", "b", "a") else v for n, v in inputs.items()} | {"past_state": past}
        out, past = session.run(None, part)
        parts.append(out)
    assert np.allclose(np.concatenate(parts, 1), y, rtol=0, atol=1e-5 * np.abs(y).max())
    assert np.allclose(past, state, rtol=0, atol=1e-5 * np.abs(state).max())


def test_the_convolution_is_its_body(library: NativeLibrary, instructions: str) -> None:
    random = np.random.default_rng(0)
    cases = [(1, 1, 8, 4), (3, 1, 300, 4), (2, 2, 40, 4), (2, 3, 257, 4), (1, 65, 20, 4), (2, 130, 30, 3)]
    cases += [(1, 5, 9, 2), (1, 2, 9, 16), (2, 70, 12, 16), (1, 1, 300, 7)]
    for _ in range(2 * ROUNDS):
        batch, num_tokens, channels = (int(random.integers(1, most)) for most in (4, 600, 600))
        cases.append((batch, num_tokens, channels, 4))
    for case in cases:
        assert_body(library, "CausalConv", conv_inputs(random, *case))


def test_a_convolution_of_one_tap_has_no_state(library: NativeLibrary, instructions: str) -> None:
    inputs = conv_inputs(np.random.default_rng(0), 2, 70, 9, 1)
    y, state = session_of("CausalConv", list(inputs), {}, library).run(None, inputs)
    product = inputs["x"] * inputs["weight"][:, 0, 0]
    assert state.shape == (2, 9, 0)
    assert np.allclose(y, product / (1 + np.exp(-product)), rtol=0, atol=1e-6)


def test_the_gated_norm_is_its_body(library: NativeLibrary, instructions: str) -> None:
    random = np.random.default_rng(0)
    cases = [(1, 1, 4, 128), (2, 3, 5, 7), (1, 70, 32, 16), (3, 1, 1, 1)]
    for _ in range(ROUNDS):
        batch, num_tokens, heads, width = (int(n) for n in random.integers(1, 80, 4))
        cases.append((batch, num_tokens, heads, width))
    for batch, num_tokens, heads, width in cases:
        x, gate = random.standard_normal((2, batch, num_tokens, heads * width)).astype(np.float32) * 5
        x[0, 0, :width] = 0
        inputs = {"x": x, "gate": gate, "weight": random.standard_normal(width).astype(np.float32)}
        assert_body(library, "GatedRMSNorm", inputs, epsilon=1e-6)


def test_no_rows_and_no_tokens_give_no_outputs(library: NativeLibrary) -> None:
    heads = Heads(1, 2, 8, 8)
    random = np.random.default_rng(0)
    for batch, num_tokens in ((0, 1), (0, 5), (2, 0), (0, 0)):
        inputs = delta_inputs(random, batch, num_tokens, heads)
        session = session_of("GatedDeltaRule", list(inputs), {"num_key_heads": 1, **DELTA}, library)
        y, state = session.run(None, inputs)
        assert y.shape == (batch, num_tokens, 16)
        assert np.array_equal(state, inputs["past_state"])
        inputs = conv_inputs(random, batch, num_tokens, 9, 4)
        y, state = session_of("CausalConv", list(inputs), {}, library).run(None, inputs)
        assert y.shape == (batch, num_tokens, 9)
        assert np.array_equal(state, inputs["past_state"])
        x = np.zeros((batch, num_tokens, 8), np.float32)
        norm = session_of("GatedRMSNorm", ["x", "gate", "weight"], DELTA, library)
        assert norm.run(None, {"x": x, "gate": x, "weight": np.ones(4, np.float32)})[0].shape == x.shape


def test_results_do_not_depend_on_the_number_of_threads(library: NativeLibrary) -> None:
    random = np.random.default_rng(1)
    for num_tokens in (1, 100):
        cases: list[tuple[str, dict[str, Array], dict[str, Any]]] = [
            ("GatedDeltaRule", delta_inputs(random, 2, num_tokens, Heads(2, 4, 32, 96)), {"num_key_heads": 2, **DELTA}),
            ("CausalConv", conv_inputs(random, 2, num_tokens, 600, 4), {}),
        ]
        x = random.standard_normal((2, num_tokens, 4096)).astype(np.float32)
        cases.append(("GatedRMSNorm", {"x": x, "gate": x, "weight": x[0, 0, :64]}, DELTA))
        for op_type, inputs, attributes in cases:
            sessions = (session_of(op_type, list(inputs), attributes, library, threads) for threads in (1, 2, 4))
            one, *others = (session.run(None, inputs) for session in sessions)
            for other in others:
                assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_value_that_is_not_finite_is_not_hidden(library: NativeLibrary, instructions: str) -> None:
    heads = Heads(1, 2, 16, 32)
    for num_tokens in (1, 4):
        for name, at in (("qkv", (0, 0, 19)), ("b", (0, 0, 0)), ("a", (0, 0, 0)), ("past_state", (0, 0, 1, 2))):
            inputs = delta_inputs(np.random.default_rng(2), 2, num_tokens, heads)
            inputs[name][at] = np.nan
            session = session_of("GatedDeltaRule", list(inputs), {"num_key_heads": 1, **DELTA}, library)
            y, state = session.run(None, inputs)
            assert np.isnan(y[0, :, :32]).any()
            assert np.isnan(state[0, 0]).any()
            assert np.isfinite(y[1]).all()
            assert np.isfinite(state[1]).all()
