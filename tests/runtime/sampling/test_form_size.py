"""Limits of a form's size: what is refused, by which name, and that the check does not grow with the form."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from qwonnx.runtime.errors import InvalidRequestError
from qwonnx.runtime.sampling.form_size import (
    MAX_GUIDE_BYTES,
    MAX_NESTING,
    MAX_OPTIONAL,
    MAX_VALUES,
    check_text,
    check_texts,
    check_value,
)
from qwonnx.runtime.sampling.guide import Guide

pytestmark = pytest.mark.fast


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        True,
        "x" * MAX_GUIDE_BYTES,
        _nested(MAX_NESTING),
        [1] * MAX_VALUES,
        {"properties": {f"p{n}": True for n in range(MAX_OPTIONAL)}},
        {"properties": {f"p{n}": True for n in range(MAX_OPTIONAL + 1)}, "required": ["p0"]},
        {"properties": 5, "required": 5},
    ],
    ids=["true", "text", "nesting", "values", "optional", "required", "odd"],
)
def test_what_is_just_small_enough_passes(value: Any) -> None:
    check_value(value, "form")


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        ("x" * (MAX_GUIDE_BYTES + 1), MAX_GUIDE_BYTES),
        ({"x" * MAX_GUIDE_BYTES: "xx"}, MAX_GUIDE_BYTES),
        ([10**4000] * 2000, MAX_GUIDE_BYTES),
        ([1] * (MAX_VALUES + 1), MAX_VALUES),
        ([[1]] * MAX_VALUES, MAX_VALUES),
        (dict.fromkeys(map(str, range(MAX_VALUES + 1))), MAX_VALUES),
        (_nested(MAX_NESTING + 1), MAX_NESTING),
        (_nested(100_000), MAX_NESTING),
        ({"a": {"properties": {f"p{n}": True for n in range(MAX_OPTIONAL + 1)}}}, MAX_OPTIONAL),
    ],
    ids=["text", "key", "numbers", "items", "lists", "keys", "nesting", "deep", "optional"],
)
def test_what_is_too_large_is_refused_by_its_limit(value: Any, limit: int) -> None:
    began = time.perf_counter()
    with pytest.raises(InvalidRequestError, match=rf"^form .*\b{limit}\b") as refusal:
        check_value(value, "form")
    assert (refusal.value.param, refusal.value.code) == ("form", "invalid_guide")
    assert time.perf_counter() - began < 1


def test_texts_have_limits_too() -> None:
    check_text("é" * (MAX_GUIDE_BYTES // 2), "form")
    check_texts(["a"] * MAX_VALUES, "form")
    with pytest.raises(InvalidRequestError, match=f"{MAX_GUIDE_BYTES + 2} bytes"):
        check_text("é" * (MAX_GUIDE_BYTES // 2 + 1), "form")
    with pytest.raises(InvalidRequestError, match="surrogate"):
        check_text("\ud800", "form")
    with pytest.raises(InvalidRequestError, match=str(MAX_VALUES)):
        check_texts(["a"] * (MAX_VALUES + 1), "form")
    with pytest.raises(InvalidRequestError, match=str(MAX_GUIDE_BYTES)):
        check_texts(["a" * 1000] * 300, "form")


def test_every_kind_of_guide_is_measured_first() -> None:
    large = "x" * (MAX_GUIDE_BYTES + 1)
    makers: list[Callable[[], Guide]] = [
        lambda: Guide.regex(large),
        lambda: Guide.lark(large),
        lambda: Guide.choice([large]),
        lambda: Guide.json_schema({"const": large}),
    ]
    for make in makers:
        with pytest.raises(InvalidRequestError, match=str(MAX_GUIDE_BYTES)) as refusal:
            make()
        assert refusal.value.code == "invalid_guide"
