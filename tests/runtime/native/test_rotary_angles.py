"""Rotary angles in one node: those of float32 products, with cosines and sines that are right at a million radians."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.fused import FusedNode

pytestmark = pytest.mark.fast

LONGEST = 1_010_000
HALF = 32
FREQUENCIES = (1.0 / 1e7 ** (np.arange(HALF) / HALF)).astype(np.float32)
AXES = np.zeros((3, 1, 1, HALF), np.float32)
AXES[np.arange(HALF) % 3, 0, 0, np.arange(HALF)] = 1
Positions = NDArray[np.int64]


def node(position_ids: Positions, factor: float = 1.0) -> FusedNode:
    constants = {"frequencies": FREQUENCIES, "axes": AXES}
    inputs = {"position_ids": position_ids}
    return FusedNode("RotaryAngles", inputs, constants, [*inputs, *constants], {"factor": factor}, num_outputs=2)


def exact(position_ids: Positions, factor: float) -> list[NDArray[Any]]:
    """In float64, of angles in float32."""
    products = position_ids.astype(np.float32)[..., None] * FREQUENCIES
    angles = (products * AXES).sum(0, dtype=np.float32).astype(np.float64)
    exactly = float(np.float32(factor))
    return [np.cos(angles) * exactly, np.sin(angles) * exactly]


def text(positions: NDArray[Any], rows: int = 1) -> Positions:
    return np.broadcast_to(positions.astype(np.int64), (3, rows, len(positions))).copy()


@pytest.mark.parametrize("factor", [1.0, 1.1386294])
def test_angles_are_right_up_to_a_million(library: NativeLibrary, factor: float) -> None:
    random = np.random.default_rng(0)
    every = text(np.concatenate([np.arange(3000), np.arange(LONGEST - 3000, LONGEST + 1)]))
    pictures = random.integers(0, LONGEST + 1, (3, 2, 700))
    for position_ids in (every, pictures, text(np.array([7])), text(np.array([0, 5]), rows=3)):
        made = node(position_ids, factor)
        for ours, expected, theirs in zip(made.run(library), exact(position_ids, factor), made.run(None), strict=True):
            assert ours.shape == expected.shape == theirs.shape
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1.2e-7)  # one rounding, and one of the factor
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2.5e-7)


def test_negative_positions_and_the_largest_ones_are_right(library: NativeLibrary) -> None:
    position_ids = text(np.array([-1, -LONGEST, 1 << 24, (1 << 31) - 200, -(1 << 31) + 200]))
    for ours, expected in zip(node(position_ids).run(library), exact(position_ids, 1.0), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-7)


def test_an_angle_beyond_the_largest_is_not_a_number(library: NativeLibrary) -> None:
    largest = np.iinfo(np.int64)
    for output in node(text(np.array([1 << 31, largest.max, largest.min, 3]))).run(library):
        assert np.isnan(output[0, :3, 0]).all()
        assert np.isfinite(output[0, 3]).all()


def test_no_rows_and_no_tokens_give_no_angles(library: NativeLibrary) -> None:
    for shape in ((3, 0, 4), (3, 2, 0)):
        assert [output.shape for output in node(np.zeros(shape, np.int64)).run(library)] == [(*shape[1:], HALF)] * 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position_ids", np.zeros((2, 1, 4), np.int64)),
        ("frequencies", FREQUENCIES[:-1]),
        ("frequencies", FREQUENCIES[None]),
        ("axes", AXES[:2].copy()),
        ("axes", AXES.reshape(3, HALF)),
    ],
)
def test_tensors_of_other_sizes_are_refused(library: NativeLibrary, name: str, value: NDArray[Any]) -> None:
    made = node(text(np.arange(4)))
    changed = replace(
        made,
        inputs={key: value if key == name else old for key, old in made.inputs.items()},
        constants={key: value if key == name else old for key, old in made.constants.items()},
    )
    with pytest.raises(Exception, match=r"position_ids are|frequencies have|axes are"):
        changed.run(library)
