"""Anchors and alternatives of regular expressions."""

from __future__ import annotations

import time

import pytest

from qwonnx.runtime.sampling.pattern_outline import PatternOutline, outline_of

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("pattern", "begins", "ends", "other", "alternatives"),
    [
        ("", False, False, False, False),
        ("^a$", True, True, False, False),
        ("^", True, False, False, False),
        ("$", False, True, False, False),
        (r"a\$", False, False, False, False),
        (r"a\\$", False, True, False, False),
        (r"\^a", False, False, False, False),
        ("^a|b$", True, True, False, True),
        ("^(a|b)$", True, True, False, False),
        ("[|^$]", False, False, False, False),
        ("[^]|]a", False, False, False, False),
        (r"[\]|]a", False, False, False, False),
        ("[a", False, False, False, False),
        ("[", False, False, False, False),
        ("[^", False, False, False, False),
        ("(^a)", False, False, True, False),
        ("(a$)|b", False, False, True, True),
        ("a)|b", False, False, False, True),
        ("\\", False, False, False, False),
    ],
)
def test_an_outline(pattern: str, begins: bool, ends: bool, other: bool, alternatives: bool) -> None:
    assert outline_of(pattern) == PatternOutline(begins, ends, other, alternatives)


@pytest.mark.parametrize("pattern", ["[" * 200_000, "(" * 100_000 + ")" * 100_000, "\\" * 200_001, "(a|" * 60_000])
def test_the_time_is_proportional_to_the_length(pattern: str) -> None:
    began = time.perf_counter()
    outline_of(pattern)
    assert time.perf_counter() - began < 1
