"""The second half of a layer in one node beside its function: residual sum, norm, routed experts and a shared one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.fused import FusedNode, assert_bfloat16_is_float32, assert_close, in_blocks
from tests.runtime.native.reference import random_weight

pytestmark = pytest.mark.fast


@dataclass(frozen=True, slots=True)
class Case:
    """Sizes of a mixture of experts."""

    tokens: tuple[int, ...] = (1, 1)
    experts: int = 8
    top_k: int = 2
    hidden: int = 128
    inner: int = 64
    shared: int = 64
    block: int = 32
    shared_bits: tuple[int, int] = (4, 4)
    shared_block: int = 32
    zero_points: bool = False
    level: int = 1


CASES = {
    "one token": Case(),
    "several rows": Case(tokens=(5, 1), experts=5, top_k=3),
    "a chunk": Case(tokens=(1, 70), inner=96, shared=160),
    "a wide shared expert in other blocks": Case(tokens=(2, 3), shared=192, shared_block=64, block=16),
    "a shared expert of 8 bits": Case(tokens=(1, 4), shared_bits=(8, 8)),
    "zero points": Case(tokens=(1, 9), zero_points=True),
}


def node(case: Case, seed: int = 0) -> FusedNode:
    random = np.random.default_rng(seed)
    weights = {
        "gate_up": random_weight(random, (case.experts, 2 * case.inner, case.hidden), 4, case.block, case.zero_points),
        "down": random_weight(random, (case.experts, case.hidden, case.inner), 4, case.block, case.zero_points),
        "shared_gate_up": in_blocks(
            random_weight(
                random, (2 * case.shared, case.hidden), case.shared_bits[0], case.shared_block, case.zero_points
            )
        ),
        "shared_down": in_blocks(
            random_weight(random, (case.hidden, case.shared), case.shared_bits[1], case.shared_block, case.zero_points)
        ),
    }
    x = {name: random.standard_normal((*case.tokens, case.hidden)).astype(np.float32) for name in ("residual", "mixed")}
    constants: dict[str, NDArray[Any]] = {
        "norm": random.uniform(0.5, 1.5, case.hidden).astype(np.float32),
        "gates": (random.standard_normal((case.experts + 1, case.hidden)) / 8).astype(np.float32),
    }
    for name, weight in weights.items():
        constants |= weight.tensors(name)
    attributes = {
        "top_k": case.top_k,
        "epsilon": 1e-6,
        "accuracy_level": case.level,
        "gate_up_bits": 4,
        "down_bits": 4,
        "block_size": case.block,
        "shared_gate_up_bits": case.shared_bits[0],
        "shared_gate_up_block_size": case.shared_block,
        "shared_down_bits": case.shared_bits[1],
        "shared_down_block_size": case.shared_block,
        "hidden": case.hidden,
        "shared_columns": case.shared,
        "shared_rows": 2 * case.shared,
        "shared_widths": [case.shared, case.shared],
        "gate_widths": [case.experts, 1],
        "logits_shape": [-1, case.experts],
    }
    op_type = "AffineMixture" if case.zero_points else "QuantizedMixture"
    return FusedNode(op_type, x, constants, [*x, *constants], attributes)


@pytest.mark.parametrize("name", CASES)
def test_the_mixture_is_its_function(library: NativeLibrary, instructions: str, name: str) -> None:
    for seed in range(2):
        made = node(CASES[name], seed)
        assert_close(made.run(library)[0], made.run(None)[0], 2e-5)


@pytest.mark.parametrize("name", CASES)
def test_quantised_activations_are_those_of_the_function(library: NativeLibrary, instructions: str, name: str) -> None:
    """Both quantise by block, but a value between two codes may go either way."""
    made = node(replace(CASES[name], level=4))
    assert_close(made.run(library)[0], made.run(None)[0], 5e-3)


@pytest.mark.parametrize("level", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_gates_may_be_bfloat16(library: NativeLibrary, instructions: str, name: str, level: int) -> None:
    assert_bfloat16_is_float32(node(replace(CASES[name], level=level)), library)


def test_gates_of_any_size_may_be_bfloat16(library: NativeLibrary, instructions: str) -> None:
    random = np.random.default_rng(3)
    for seed in range(12):
        case = Case(
            tokens=(1, int(random.choice([1, 2, 3, 4, 7, 20]))),
            experts=int(random.integers(2, 40)),
            hidden=16 * int(random.integers(1, 20)),
            block=16,
            shared_block=16,
        )
        assert_bfloat16_is_float32(node(case, seed), library)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.uint8, np.int16])
def test_gates_of_another_type_are_refused(library: NativeLibrary, dtype: type) -> None:
    with pytest.raises(Exception, match="gates has element type"):
        node(Case()).with_gates(dtype).session(library)


def test_no_tokens_give_no_output(library: NativeLibrary, instructions: str) -> None:
    assert node(Case(tokens=(0, 1))).run(library)[0].shape == (0, 1, 128)


@pytest.mark.parametrize("name", ["residual", "mixed"])
def test_values_that_are_not_finite_do_not_disappear(library: NativeLibrary, instructions: str, name: str) -> None:
    made = node(Case(tokens=(1, 3), level=4))
    made.inputs[name][0, 1, 5] = np.nan
    y = made.run(library)[0]
    assert not np.isfinite(y[0, 1]).any()
    assert np.isfinite(y[0, [0, 2]]).all()


@pytest.mark.parametrize("name", ["norm", "gates", "shared_down.codes", "shared_gate_up.scales", "down.codes"])
def test_a_weight_of_another_size_is_refused(library: NativeLibrary, name: str) -> None:
    made = node(Case())
    constants = {**made.constants, name: made.constants[name][..., :-1].copy()}
    with pytest.raises(Exception, match=r"norm|gates|shared_down|shared_gate_up|gate_up|down"):
        replace(made, constants=constants).session(library)
