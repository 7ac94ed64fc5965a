"""A graph that lies about the tensors of a linear-attention layer gets an error when the node runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.test_linear_attention import Array, Heads, conv_inputs, delta_inputs, session_of

pytestmark = pytest.mark.fast

Change = Callable[[Array], Array]
DELTA: dict[str, Any] = {"num_key_heads": 2, "epsilon": 1e-6}

DELTA_LIES: dict[str, tuple[str, Change]] = {
    "fewer columns": ("qkv", lambda a: a[..., :-1]),
    "more columns": ("qkv", lambda a: np.concatenate([a, a], -1)),
    "no batch axis": ("qkv", lambda a: a[0]),
    "more rows than states": ("qkv", lambda a: np.concatenate([a, a], 0)),
    "fewer tokens of b": ("b", lambda a: a[:, :-1]),
    "more tokens of a": ("a", lambda a: np.concatenate([a, a], 1)),
    "fewer heads of a": ("a", lambda a: a[..., :-1]),
    "a flat b": ("b", lambda a: a.reshape(-1)),
    "one decay": ("decay_scale", lambda a: a[:1]),
    "decays of two axes": ("decay_scale", lambda a: a[:, None]),
    "no bias": ("dt_bias", lambda a: a[:0]),
    "fewer heads of the state": ("past_state", lambda a: a[:, :-1]),
    "another key width": ("past_state", lambda a: a[:, :, :-1]),
    "another value width": ("past_state", lambda a: a[..., :-1]),
    "a state without values": ("past_state", lambda a: a[..., :0]),
    "a state of three axes": ("past_state", lambda a: a[0]),
    "keys that are too wide": ("past_state", lambda a: np.zeros((*a.shape[:2], 1025, 1), np.float32)),
}
CONV_LIES: dict[str, tuple[str, Change]] = {
    "fewer channels of x": ("x", lambda a: a[..., :-1]),
    "no batch axis": ("x", lambda a: a[0]),
    "more rows than states": ("x", lambda a: np.concatenate([a, a], 0)),
    "fewer channels of the weight": ("weight", lambda a: a[:-1]),
    "two inputs a channel": ("weight", lambda a: np.concatenate([a, a], 1)),
    "no taps": ("weight", lambda a: a[..., :0]),
    "too many taps": ("weight", lambda a: np.concatenate([a] * 5, -1)),
    "a weight of two axes": ("weight", lambda a: a[:, 0]),
    "a short state": ("past_state", lambda a: a[..., :-1]),
    "fewer channels of the state": ("past_state", lambda a: a[:, :-1]),
    "a state without rows": ("past_state", lambda a: a[:0]),
}


@pytest.mark.parametrize("lie", DELTA_LIES)
def test_a_delta_rule_with_wrong_shapes_is_refused(library: NativeLibrary, lie: str) -> None:
    inputs = delta_inputs(np.random.default_rng(0), 2, 3, Heads(2, 4, 16, 16))
    name, change = DELTA_LIES[lie]
    inputs[name] = np.ascontiguousarray(change(inputs[name]))
    with pytest.raises(Exception, match=r"qkv|past_state|heads|keys"):
        session_of("GatedDeltaRule", list(inputs), DELTA, library).run(None, inputs)


@pytest.mark.parametrize("key_heads", [0, -1, 3, 5, 1 << 40, -(1 << 63)])
def test_a_wrong_number_of_key_heads_is_refused(library: NativeLibrary, key_heads: int) -> None:
    inputs = delta_inputs(np.random.default_rng(0), 1, 1, Heads(2, 4, 16, 16))
    attributes = {"num_key_heads": key_heads, "epsilon": 1e-6}
    with pytest.raises(Exception, match="num_key_heads is"):
        session_of("GatedDeltaRule", list(inputs), attributes, library).run(None, inputs)


@pytest.mark.parametrize("lie", CONV_LIES)
def test_a_convolution_with_wrong_shapes_is_refused(library: NativeLibrary, lie: str) -> None:
    inputs = conv_inputs(np.random.default_rng(0), 2, 3, 10, 4)
    name, change = CONV_LIES[lie]
    inputs[name] = np.ascontiguousarray(change(inputs[name]))
    with pytest.raises(Exception, match=r"channels|taps"):
        session_of("CausalConv", list(inputs), {}, library).run(None, inputs)


@pytest.mark.parametrize("shapes", [((2, 3, 8), (2, 3, 7), (4,)), ((2, 3, 8), (2, 3, 8), (3,)), ((8,), (8,), (0,))])
def test_a_gated_norm_with_wrong_shapes_is_refused(library: NativeLibrary, shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = {name: np.ones(shape, np.float32) for name, shape in zip(("x", "gate", "weight"), shapes, strict=True)}
    with pytest.raises(Exception, match="groups of the weight's"):
        session_of("GatedRMSNorm", list(inputs), {"epsilon": 1e-6}, library).run(None, inputs)
