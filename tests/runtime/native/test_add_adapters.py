"""What adapters add to a projection: the kernel beside the operator's body, and beside plain products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.fused import FusedNode, assert_close

pytestmark = pytest.mark.fast

Floats = NDArray[np.float32]


def node(
    slots: list[int], tokens: int, inputs: int, outputs: int, rank: int, *, offset: int = 0, num_slots: int = 4
) -> FusedNode:
    random = np.random.default_rng([*slots, tokens, inputs, outputs, rank])

    def floats(*shape: int) -> Floats:
        return random.standard_normal(shape, np.float32)

    adapters = floats(num_slots, offset + inputs + outputs + 3, rank)
    adapters[:1] = 0
    given: dict[str, NDArray[Any]] = {
        "y": floats(len(slots), tokens, outputs),
        "x": floats(len(slots), tokens, inputs),
        "slots": np.array(slots, np.int64),
        "adapters": adapters,
    }
    return FusedNode("AddAdapters", given, {}, [*given], {"offset": offset})


def expected(made: FusedNode) -> Floats:
    y, x, slots, adapters = (made.inputs[name] for name in ("y", "x", "slots", "adapters"))
    offset, inputs, outputs = made.attributes["offset"], x.shape[2], y.shape[2]
    added = []
    for row, slot in enumerate(slots):
        block = adapters[slot, offset : offset + inputs + outputs].astype(np.float64)
        up = block[inputs:].reshape(adapters.shape[2], outputs)
        added.append(x[row] @ block[:inputs] @ up)
    return np.asarray(y + np.array(added).reshape(y.shape), np.float32)


@settings(max_examples=60, deadline=None)
@given(
    slots=st.lists(st.integers(0, 3), min_size=1, max_size=19),
    tokens=st.integers(1, 21),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    rank=st.integers(1, 40),
    offset=st.integers(0, 9),
)
def test_it_adds_the_product_of_each_rows_adapter(
    library: NativeLibrary, slots: list[int], tokens: int, inputs: int, outputs: int, rank: int, offset: int
) -> None:
    made = node(slots, tokens, inputs, outputs, rank, offset=offset)
    ours, theirs = made.run(library)[0], made.run(None)[0]
    assert_close(ours, expected(made), 1e-5)
    assert_close(ours, theirs, 1e-5)


@pytest.mark.parametrize("rank", [16, 32, 256])
def test_slot_zero_adds_nothing_and_reads_nothing(library: NativeLibrary, rank: int) -> None:
    made = node([0, 2, 0], 3, 48, 64, rank)
    hostile = made.inputs["adapters"].copy()
    hostile[0] = np.nan
    (ours,) = replace(made, inputs={**made.inputs, "adapters": hostile}).run(library)
    np.testing.assert_array_equal(ours[[0, 2]], made.inputs["y"][[0, 2]])
    assert_close(ours, expected(made), 1e-5)


def test_a_row_has_the_same_bits_whoever_shares_its_step(library: NativeLibrary) -> None:
    made = node([1, 1, 2, 1, 3, 0, 1, 1, 1], 1, 64, 96, 16)
    (together,) = made.run(library)
    for row in range(9):
        alone = {name: value[row : row + 1] if name != "adapters" else value for name, value in made.inputs.items()}
        (single,) = replace(made, inputs=alone).run(library)
        assert_close(single, together[row : row + 1], 1e-6)


def test_no_tokens_no_rank_and_no_slots(library: NativeLibrary) -> None:
    for made in (node([1, 0], 0, 8, 8, 4), node([1, 2], 3, 8, 8, 0), node([0], 2, 8, 8, 4, num_slots=0)):
        (ours,) = made.run(library)
        np.testing.assert_array_equal(ours, made.inputs["y"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("slots", np.array([4, 0], np.int64), "slot 4 of 4"),
        ("slots", np.array([0, -1], np.int64), "slot -1 of 4"),
        ("slots", np.array([0, 1 << 62], np.int64), "slot"),
        ("slots", np.array([0], np.int64), "one slot for each row"),
        ("slots", np.array([[0, 0]], np.int64), "one slot for each row"),
        ("x", np.zeros((2, 4, 8), np.float32), "same tokens"),
        ("x", np.zeros((2, 3), np.float32), "same tokens"),
        ("x", np.zeros((2, 3, 80), np.float32), "are 21 wide"),
        ("adapters", np.zeros((4, 21), np.float32), "2 dimensions"),
        ("adapters", np.zeros((4, 10, 4), np.float32), "are 10 wide"),
        ("adapters", np.zeros((4, 21, 257), np.float32), "at most 256"),
    ],
)
def test_what_does_not_fit_is_refused(library: NativeLibrary, name: str, value: NDArray[Any], message: str) -> None:
    made = node([1, 2], 3, 8, 8, 4, offset=2)
    with pytest.raises(Exception, match=message):
        replace(made, inputs={**made.inputs, name: value}).run(library)


@pytest.mark.parametrize("offset", [-1, 6, 1 << 40, (1 << 63) - 1])
def test_an_offset_beyond_the_adapters_is_refused(library: NativeLibrary, offset: int) -> None:
    made = replace(node([1], 1, 8, 8, 4), attributes={"offset": offset})
    with pytest.raises(Exception, match="are 19 wide"):
        made.run(library)
