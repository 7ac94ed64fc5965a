"""The first half of a linear-attention layer in one node beside its function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwonnx.export.targets.cpu_functions import delta_rule_attributes
from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.fused import (
    FusedNode,
    assert_bfloat16_is_float32,
    assert_close,
    in_blocks,
    tolerance_of_codes,
)
from tests.runtime.native.reference import random_weight

pytestmark = pytest.mark.fast


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes of a layer."""

    batch: int = 1
    tokens: int = 1
    hidden: int = 64
    key_heads: int = 2
    value_heads: int = 4
    key_dim: int = 32
    value_dim: int = 32
    taps: int = 4
    bits: tuple[int, int] = (4, 4)  # of qkv and z
    blocks: tuple[int, int] = (32, 32)
    zero_points: bool = False
    level: int = 1


CASES = {
    "one token": Case(),
    "rows of one token": Case(batch=3, key_heads=1, value_heads=3, key_dim=16),
    "wide heads": Case(key_dim=128, value_dim=320, value_heads=2),
    "a chunk": Case(tokens=70),
    "rows of chunks": Case(batch=2, tokens=5, hidden=128),
    "z in other blocks": Case(blocks=(32, 16)),
    "z of other bits": Case(tokens=3, bits=(4, 8)),
    "zero points": Case(batch=2, zero_points=True),
}


def node(case: Case, seed: int = 0) -> FusedNode:
    random = np.random.default_rng(seed)
    value_width = case.value_heads * case.value_dim
    channels = 2 * case.key_heads * case.key_dim + value_width
    constants: dict[str, NDArray[Any]] = {
        "norm": random.uniform(0.5, 1.5, case.hidden).astype(np.float32),
        "gates": (random.standard_normal((2 * case.value_heads, case.hidden)) / 8).astype(np.float32),
    }
    for index, (name, rows) in enumerate((("qkv", channels), ("z", value_width))):
        weight = random_weight(random, (rows, case.hidden), case.bits[index], case.blocks[index], case.zero_points)
        constants |= in_blocks(weight).tensors(name)
    constants |= {
        "conv_weight": random.standard_normal((channels, 1, case.taps)).astype(np.float32),
        "decay_scale": -random.uniform(0, 2, case.value_heads).astype(np.float32),
        "dt_bias": random.standard_normal(case.value_heads).astype(np.float32),
        "out_norm": random.uniform(0.5, 1.5, case.value_dim).astype(np.float32),
    }
    inputs = {
        "h": random.standard_normal((case.batch, case.tokens, case.hidden)).astype(np.float32),
        "past_conv": random.standard_normal((case.batch, channels, case.taps - 1)).astype(np.float32),
        "past_state": random.standard_normal((case.batch, case.value_heads, case.key_dim, case.value_dim)).astype(
            np.float32
        ),
    }
    attributes = {
        **delta_rule_attributes(case.key_heads, case.value_heads, case.key_dim, case.value_dim, 1e-6),
        "norm_epsilon": 1e-6,
        "out_norm_epsilon": 1e-5,
        "accuracy_level": case.level,
        "hidden": case.hidden,
        "gate_widths": [case.value_heads, case.value_heads],
        "qkv_rows": channels,
        "qkv_bits": case.bits[0],
        "qkv_block_size": case.blocks[0],
        "z_rows": value_width,
        "z_bits": case.bits[1],
        "z_block_size": case.blocks[1],
    }
    op_type = "AffineDeltaNet" if case.zero_points else "QuantizedDeltaNet"
    order = ["h", *constants, "past_conv", "past_state"]
    return FusedNode(op_type, inputs, constants, order, attributes, num_outputs=3)


@pytest.mark.parametrize("name", CASES)
def test_the_layer_is_its_function(library: NativeLibrary, instructions: str, name: str) -> None:
    for seed in range(2):
        made = node(CASES[name], seed)
        for ours, theirs in zip(made.run(library), made.run(None), strict=True):
            assert_close(ours, theirs, 5e-5)


@pytest.mark.parametrize("name", CASES)
def test_quantised_activations_are_those_of_the_function(library: NativeLibrary, instructions: str, name: str) -> None:
    made = node(replace(CASES[name], level=4))
    for ours, theirs in zip(made.run(library), made.run(None), strict=True):
        assert_close(ours, theirs, tolerance_of_codes(2e-3))


@pytest.mark.parametrize("level", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_gates_may_be_bfloat16(library: NativeLibrary, instructions: str, name: str, level: int) -> None:
    assert_bfloat16_is_float32(node(replace(CASES[name], level=level)), library)


def test_gates_of_any_size_may_be_bfloat16(library: NativeLibrary, instructions: str) -> None:
    random = np.random.default_rng(4)
    for seed in range(12):
        case = Case(
            batch=int(random.integers(1, 4)),
            tokens=int(random.choice([1, 1, 2, 3, 9])),
            hidden=16 * int(random.integers(1, 20)),
            value_heads=2 * int(random.integers(1, 12)),
            blocks=(16, 16),
        )
        assert_bfloat16_is_float32(node(case, seed), library)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int16])
def test_gates_of_another_type_are_refused(library: NativeLibrary, dtype: type) -> None:
    with pytest.raises(Exception, match="gates has element type"):
        node(Case()).with_gates(dtype).run(library)


@pytest.mark.parametrize("tokens", [1, 6])
def test_states_may_be_written_in_place(library: NativeLibrary, instructions: str, tokens: int) -> None:
    made = node(Case(batch=2, tokens=tokens))
    expected = made.run(library)
    session = made.session(library)
    bound = {name: value.copy() for name, value in made.inputs.items()}
    binding = session.io_binding()
    for name, value in bound.items():
        binding.bind_input(name, "cpu", 0, np.float32, value.shape, value.ctypes.data)
    binding.bind_output("y0", "cpu")
    for name, state in (("y1", "past_conv"), ("y2", "past_state")):
        binding.bind_output(name, "cpu", 0, np.float32, bound[state].shape, bound[state].ctypes.data)
    session.run_with_iobinding(binding)
    results = [binding.copy_outputs_to_cpu()[0], bound["past_conv"], bound["past_state"]]
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(results, expected, strict=True))


def test_no_rows_and_no_tokens_give_no_output(library: NativeLibrary, instructions: str) -> None:
    assert node(Case(batch=0)).run(library)[0].shape == (0, 1, 128)
    made = node(Case(tokens=0))
    y, *states = made.run(library)
    assert y.shape == (1, 0, 128)
    assert np.array_equal(states[0], made.inputs["past_conv"])
    assert np.array_equal(states[1], made.inputs["past_state"])


@pytest.mark.parametrize("name", ["norm", "gates", "z.codes", "qkv.scales", "conv_weight", "decay_scale", "out_norm"])
def test_a_weight_of_another_size_is_refused(library: NativeLibrary, name: str) -> None:
    made = node(Case())
    constants = {**made.constants, name: made.constants[name][..., :-1].copy()}
    with pytest.raises(Exception, match=r"shape|codes|scales|columns|channels"):
        replace(made, constants=constants).run(library)
