from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.runtime.text.cut_json import object_of

pytestmark = pytest.mark.fast

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        (" ", {}),
        ("{", {}),
        ('{"a', {}),
        ('{"a":', {}),
        ('{"a": tr', {}),
        ('{"a": -', {}),
        ('{"a": 12', {"a": 12}),
        ('{"a": "x', {"a": "x"}),
        ('{"a": "x\\', {"a": "x"}),
        ('{"a": "x\\\\', {"a": "x\\"}),
        ('{"a": "\\u00e', {"a": ""}),
        ('{"a": 1, "b": [1, {"c": "d"', {"a": 1, "b": [1, {"c": "d"}]}),
        ('{"a": 1, ', {"a": 1}),
        ('{"a": [', {"a": []}),
        ('{"a": {"b": 1}', {"a": {"b": 1}}),
        ("[1", None),
        ("nothing", None),
        ('{"a" 1', None),
    ],
)
def test_a_cut_object_is_what_was_written_of_it(text: str, expected: dict[str, Any] | None) -> None:
    assert object_of(text) == expected


@given(value=st.dictionaries(st.text(), VALUES), ascii_only=st.booleans(), data=st.data())
def test_every_beginning_of_an_objects_text_is_an_object(value: dict[str, Any], ascii_only: bool, data: Any) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert object_of(text) == value
    cut = object_of(text[: data.draw(st.integers(0, len(text)))])
    assert cut is not None
    assert list(cut) == list(value)[: len(cut)]
    assert all(cut[key] == value[key] for key in list(cut)[:-1])
