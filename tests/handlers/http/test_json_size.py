"""The number of values in a JSON text, before it is decoded."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.handlers.http.json_size import has_too_many_values

pytestmark = pytest.mark.fast

_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a[]{},:"\\\n', max_size=20),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.text('a"\\{', max_size=4), inner, max_size=9),
)


def _count(value: Any) -> int:
    """Objects, lists, and the commas between members and items."""
    if not isinstance(value, (dict, list)):
        return 0
    inner = list(value.values() if isinstance(value, dict) else value)
    return 1 + max(0, len(inner) - 1) + sum(map(_count, inner))


@given(_TREES, st.sampled_from([None, 2]), st.booleans())
def test_marks_outside_strings_are_counted(tree: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(tree, indent=indent, ensure_ascii=ascii_only).encode()
    exact = _count(tree)
    assert not has_too_many_values(text, exact + text.count(b'"'))
    if exact:
        assert has_too_many_values(text, exact - 1)


@pytest.mark.parametrize(
    ("text", "too_many"),
    [
        (b"[" + b"[]," * 3_000_000 + b"1]", True),
        (b"[" + b"1," * 5_000_000 + b"1]", True),
        (b'"",' * 3_000_000, True),
        (b'"' + b"a" * 10_000_000 + b'"', False),
        (b'"' + b"a[b,{c}," * 1_000_000 + b'"', False),
        (b'"' + b'\\"[,' * 2_000_000 + b'"', False),
        (b"\\" * 10_000_000, False),
    ],
    ids=["lists", "numbers", "strings", "text", "code", "escapes", "backslashes"],
)
def test_ten_megabytes_are_counted_at_once(text: bytes, too_many: bool) -> None:
    began = time.perf_counter()
    assert has_too_many_values(text) is too_many
    assert time.perf_counter() - began < 2
