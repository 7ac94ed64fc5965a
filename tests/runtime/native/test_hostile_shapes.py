"""A graph that lies about its weights gets an error: at load if they are constant, else when it runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.reference import Node, random_weight, session

pytestmark = pytest.mark.fast

Tensors = dict[str, NDArray[np.generic]]
LINEAR = Node("AffineLinear", ["x", "w.codes", "w.scales", "w.zero_points"], {"bits": 4, "accuracy_level": 4})
EXPERTS = Node(
    "QuantizedExperts",
    ["x", "logits", "up.codes", "up.scales", "down.codes", "down.scales"],
    {"top_k": 2, "gate_up_bits": 4, "down_bits": 4, "accuracy_level": 4},
)


def linear_tensors() -> Tensors:
    return random_weight(np.random.default_rng(0), (24, 128), 4, 32, True).tensors("w")


def experts_tensors() -> Tensors:
    random = np.random.default_rng(0)
    up, down = random_weight(random, (4, 64, 64), 4, 32, False), random_weight(random, (4, 64, 32), 4, 32, False)
    return {**up.tensors("up"), **down.tensors("down")}


def changed(tensors: Tensors, name: str, change: Callable[[NDArray[np.generic]], NDArray[np.generic]]) -> Tensors:
    return {**tensors, name: np.ascontiguousarray(change(tensors[name]))}


LINEAR_LIES = {
    "fewer rows of codes": ("w.codes", lambda a: a[:-1]),
    "more rows of codes": ("w.codes", lambda a: np.concatenate([a, a])),
    "shorter rows": ("w.codes", lambda a: a[:, :-1]),
    "rows of other blocks": ("w.codes", lambda a: a[:, :48]),
    "flat codes": ("w.codes", lambda a: a.reshape(-1)),
    "no codes": ("w.codes", lambda a: a[:, :0]),
    "codes of three dimensions, other blocks": ("w.codes", lambda a: a.reshape(24, 8, 8)),
    "fewer scales": ("w.scales", lambda a: a[:, :-1]),
    "rows without scales": ("w.scales", lambda a: a[:-1]),
    "no scales": ("w.scales", lambda a: a[:0]),
    "one scale a row": ("w.scales", lambda a: a[:, :1]),
    "short zero points": ("w.zero_points", lambda a: a[:, :1]),
    "zero points of fewer rows": ("w.zero_points", lambda a: a[:-1]),
}
EXPERTS_LIES = {
    "an expert less": ("down.codes", lambda a: a[:-1]),
    "scales of an expert less": ("up.scales", lambda a: a[:-1]),
    "an odd number of rows": ("up.codes", lambda a: a[:, :-1]),
    "another width": ("down.codes", lambda a: a[:, :-32]),
    "other blocks": ("down.scales", lambda a: np.concatenate([a, a, a], -1)),
    "a matrix without its stack": ("up.codes", lambda a: a[0]),
}


@pytest.mark.parametrize("lie", LINEAR_LIES)
def test_a_linear_layer_with_wrong_shapes_is_refused(library: NativeLibrary, lie: str) -> None:
    tensors = changed(linear_tensors(), *LINEAR_LIES[lie])
    with pytest.raises(Exception, match="weight"):
        session([LINEAR], ["x"], tensors, library)


@pytest.mark.parametrize("lie", EXPERTS_LIES)
def test_experts_with_wrong_shapes_are_refused(library: NativeLibrary, lie: str) -> None:
    tensors = changed(experts_tensors(), *EXPERTS_LIES[lie])
    with pytest.raises(Exception, match=r"gate_up|down|expert"):
        session([EXPERTS], ["x", "logits"], tensors, library)


@pytest.mark.parametrize(
    "attributes",
    [{"bits": 3}, {"bits": 0}, {"bits": -4}, {"bits": 16}, {"bits": 1 << 40}, {"bits": 8}],
)
def test_widths_that_do_not_fit_are_refused(library: NativeLibrary, attributes: dict[str, int]) -> None:
    with pytest.raises(Exception, match=r"bits|zero points|columns"):
        session([Node(LINEAR.op_type, LINEAR.inputs, attributes)], ["x"], linear_tensors(), library)


@pytest.mark.parametrize("top_k", [0, -1, 5, 1 << 40])
def test_top_k_must_be_a_number_of_experts(library: NativeLibrary, top_k: int) -> None:
    node = Node(EXPERTS.op_type, EXPERTS.inputs, {**EXPERTS.attributes, "top_k": top_k})
    with pytest.raises(Exception, match="top_k"):
        session([node], ["x", "logits"], experts_tensors(), library)


def test_activations_of_another_width_are_refused(library: NativeLibrary) -> None:
    made = session([LINEAR], ["x"], linear_tensors(), library)
    with pytest.raises(Exception, match="x has 127 columns"):
        made.run(None, {"x": np.zeros((1, 127), np.float32)})
    routed = session([EXPERTS], ["x", "logits"], experts_tensors(), library)
    with pytest.raises(Exception, match=r"logits are not \[3, 4\]"):
        routed.run(None, {"x": np.zeros((3, 64), np.float32), "logits": np.zeros((2, 4), np.float32)})
    with pytest.raises(Exception, match=r"logits are not \[3, 4\]"):
        routed.run(None, {"x": np.zeros((3, 64), np.float32), "logits": np.zeros((3, 5), np.float32)})


def test_weights_that_are_inputs_are_checked_when_they_come(library: NativeLibrary) -> None:
    tensors = linear_tensors()
    scales = tensors.pop("w.scales")
    made = session([LINEAR], ["x", "w.scales"], tensors, library)
    x = np.ones((1, 128), np.float32)
    whole = session([LINEAR], ["x"], {**tensors, "w.scales": scales}, library)
    assert np.array_equal(made.run(None, {"x": x, "w.scales": scales})[0], whole.run(None, {"x": x})[0])
    with pytest.raises(Exception, match="weight"):
        made.run(None, {"x": x, "w.scales": scales[:-1]})
