"""Attention whose shapes or lengths lie gets an error that names what is wrong, and touches no memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from qwonnx.runtime.native.library import NativeLibrary
from tests.runtime.native.attention import CACHES, KINDS, OUTPUTS, Shape, attention_session, random_step

pytestmark = pytest.mark.fast

SHAPE = Shape([5, 9], 3, 4, 2, 16, spare=2)  # a cache of 14 positions
Change = Callable[[NDArray[np.generic]], NDArray[np.generic]]

LIES: dict[str, tuple[str, Change, str]] = {
    "a length behind the cache": ("past_lengths", lambda a: a + 3, r"past_lengths\[1\] is 12"),
    "a length that fills the cache": ("past_lengths", lambda a: a + 5, "past_lengths"),
    "a negative length": ("past_lengths", lambda a: a - 6, r"past_lengths\[0\] is -1"),
    "the least length": ("past_lengths", lambda a: np.full_like(a, np.iinfo(np.int64).min), "past_lengths"),
    "the largest length": ("past_lengths", lambda a: np.full_like(a, np.iinfo(np.int64).max), "past_lengths"),
    "a length too few": ("past_lengths", lambda a: a[:1], "past_lengths is not"),
    "a length too many": ("past_lengths", lambda a: np.concatenate([a, a]), "past_lengths is not"),
    "lengths of two dimensions": ("past_lengths", lambda a: a[None], "past_lengths is not"),
    "a row less": ("query", lambda a: a[:1], "gate is not"),
    "a token less": ("key", lambda a: a[:, 1:], "key is not"),
    "other tokens of the values": ("value", lambda a: a[:, :0], "value is not"),
    "a narrower query": ("query", lambda a: a[..., :-1], "query is 63 wide"),
    "a query of other heads": ("query", lambda a: a[..., :-4], "past_key"),
    "an empty query": ("query", lambda a: a[..., :0], "query is 0 wide"),
    "a flat query": ("query", lambda a: a[0], "query has 2 dimensions"),
    "a narrower gate": ("gate", lambda a: a[..., :-1], "gate is not"),
    "a wider key": ("key", lambda a: np.concatenate([a, a], -1), "key is not"),
    "a cache of a row": ("past_key", lambda a: a[:1], "past_key is not"),
    "a cache of a head": ("past_value", lambda a: a[:, :1], "past_value is not"),
    "a cache of three heads": ("past_key", lambda a: np.concatenate([a, a[:, :1]], 1), "3 heads of past_key"),
    "a cache without heads": ("past_key", lambda a: a[:, :0], "0 heads of past_key"),
    "a shorter cache of values": ("past_value", lambda a: a[:, :, 1:], "past_value is not"),
    "an empty cache": ("past_key", lambda a: a[:, :, :0], "past_value is not"),
    "a narrower cache": ("past_key", lambda a: a[..., 1:], "past_key"),
    "a flat cache": ("past_key", lambda a: a[0], "past_key has 3 dimensions"),
    "scales of a head": ("key_scale", lambda a: a[:, :1], "key_scale is not"),
    "scales of fewer channels": ("value_scale", lambda a: a[..., 1:], "value_scale is not"),
    "scales for each position": ("key_scale", lambda a: np.concatenate([a] * 14, 2), "key_scale is not"),
}


@pytest.mark.parametrize("kv", KINDS)
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(library: NativeLibrary, lie: str, kv: str) -> None:
    name, change, message = LIES[lie]
    arrays = random_step(kv, SHAPE)
    if name not in arrays:
        pytest.skip("a float cache has no scales")
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    with pytest.raises(Exception, match=message):
        attention_session(kv, SHAPE.num_heads, library).run(None, arrays)


@pytest.mark.parametrize("num_heads", [0, -4, 3, 5, 64, 1 << 40, -(1 << 63)])
def test_a_number_of_heads_that_does_not_fit_is_refused(library: NativeLibrary, num_heads: int) -> None:
    with pytest.raises(Exception, match=r"num_heads|past_key"):
        attention_session("float32", num_heads, library).run(None, random_step("float32", SHAPE))


def test_int4_needs_an_even_width(library: NativeLibrary) -> None:
    arrays = random_step("int4", Shape([4], 1, 2, 1, 6))
    arrays |= {name: np.ascontiguousarray(arrays[name][..., :-1]) for name in ("key", "value", "query", "gate")}
    with pytest.raises(Exception, match=r"query is 11 wide|past_key"):
        attention_session("int4", 1, library).run(None, arrays)


def test_a_cache_that_overlaps_its_past_is_refused(library: NativeLibrary) -> None:
    arrays = random_step("float32", SHAPE)
    session = attention_session("float32", SHAPE.num_heads, library)
    io = session.io_binding()
    room = np.zeros(arrays["past_key"].size + 16, np.float32)
    arrays["past_key"] = room[:-16].reshape(arrays["past_key"].shape)
    shifted = room[16:].reshape(arrays["past_key"].shape)
    for name, array in arrays.items():
        io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    outputs = (np.empty_like(arrays["query"]), shifted, arrays[CACHES[1]])
    for name, array in zip(OUTPUTS, outputs, strict=True):
        io.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    with pytest.raises(Exception, match="overlaps its past"):
        session.run_with_iobinding(io)
