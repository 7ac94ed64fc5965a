"""A norm and the linear layer behind it in one node beside its function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.fused import FusedNode, assert_close, in_blocks, tolerance_of_codes
from tests.runtime.native.reference import random_weight

pytestmark = pytest.mark.fast


def node(tokens: tuple[int, ...] = (1, 1), bits: int = 4, *, zero_points: bool = False, level: int = 1) -> FusedNode:
    random = np.random.default_rng(len(tokens) + bits)
    rows, columns, block = 50, 128, 32
    weight = in_blocks(random_weight(random, (rows, columns), bits, block, zero_points))
    inputs = {"x": random.standard_normal((*tokens, columns)).astype(np.float32)}
    constants: dict[str, Any] = {"norm": random.uniform(0.5, 1.5, columns).astype(np.float32), **weight.tensors("w")}
    attributes = {
        "epsilon": 1e-5,
        "N": rows,
        "K": columns,
        "bits": bits,
        "block_size": block,
        "accuracy_level": level,
    }
    op_type = "AffineNormLinear" if zero_points else "QuantizedNormLinear"
    return FusedNode(op_type, inputs, constants, ["x", *constants], attributes)


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 1), (1, 20), (7,)])
def test_the_layer_is_its_function(
    library: NativeLibrary, instructions: str, tokens: tuple[int, ...], bits: int, zero_points: bool
) -> None:
    for level, relative in ((1, 1e-5), (4, tolerance_of_codes(3e-3))):
        made = node(tokens, bits, zero_points=zero_points, level=level)
        assert_close(made.run(library)[0], made.run(None)[0], relative)


def test_no_tokens_give_no_output(library: NativeLibrary) -> None:
    assert node((0, 1)).run(library)[0].shape == (0, 1, 50)


@pytest.mark.parametrize("level", [1, 4])
def test_values_that_are_not_finite_do_not_disappear(library: NativeLibrary, instructions: str, level: int) -> None:
    made = node((1, 3), level=level)
    made.inputs["x"][0, 1, 5] = np.nan
    y = made.run(library)[0]
    assert not np.isfinite(y[0, 1]).any()
    assert np.isfinite(y[0, [0, 2]]).all()


@pytest.mark.parametrize("name", ["norm", "w.codes", "w.scales"])
def test_a_weight_of_another_size_is_refused_when_the_session_is_created(library: NativeLibrary, name: str) -> None:
    made = node()
    constants = {**made.constants, name: made.constants[name][..., :-1].copy()}
    with pytest.raises(Exception, match=r"norm|codes|scales|blocks"):
        replace(made, constants=constants).session(library)
