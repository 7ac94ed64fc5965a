"""Rows in integers: shapes and bytes for the states in a manifest."""

from __future__ import annotations

import numpy as np
import pytest

from qwonnx.runtime.artifact.manifest import StateSpec
from qwonnx.runtime.cache.rows import item_bytes, row_bytes, row_cost, row_shape

pytestmark = pytest.mark.fast


def test_keys_and_values_grow_by_token_and_other_states_do_not() -> None:
    key = StateSpec(1, "key", "past.1.key", "present.1.key", "float16", ("batch", 2, "max_model_len", 4))
    conv = StateSpec(0, "conv_state", "past.0.conv", "present.0.conv", "float32", ("batch", 5, 3))
    assert (row_shape(key, 7), row_shape(conv, 7)) == ((2, 7, 4), (5, 3))
    assert (row_bytes(key, 7), row_bytes(conv, 7)) == (7 * 16, 60)
    cost = row_cost((conv, key))
    assert (cost.bytes_per_row, cost.bytes_per_token, cost.bytes_of(7)) == (60, 16, 60 + 7 * 16)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int32", "int64"])
def test_every_type_of_a_state_has_numpys_size(dtype: str) -> None:
    assert item_bytes(StateSpec(0, "key", "k", "p", dtype, ("batch", 1))) == np.dtype(dtype).itemsize
