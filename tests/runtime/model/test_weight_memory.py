"""What experts leave of the mapped weights, by pages."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwonnx.runtime.model.weight_files import MappedRange
from qwonnx.runtime.model.weight_memory import without

pytestmark = pytest.mark.fast

PAGE = os.sysconf("SC_PAGE_SIZE")
ranges = st.lists(
    st.builds(lambda first, pages: MappedRange(first * PAGE, pages * PAGE), st.integers(0, 60), st.integers(1, 20)),
    max_size=6,
)
holes = st.lists(st.builds(MappedRange, st.integers(0, 80 * PAGE), st.integers(1, 9 * PAGE)), max_size=8)


def pages_of(parts: list[MappedRange]) -> list[int]:
    return [page for part in parts for page in range(part.address // PAGE, -(-(part.address + part.num_bytes) // PAGE))]


@given(ranges, holes)
def test_what_is_left_are_the_pages_that_no_hole_touches(
    given_ranges: list[MappedRange], cut: list[MappedRange]
) -> None:
    left = without(given_ranges, cut)
    touched = set(pages_of(cut))
    assert pages_of(left) == [page for page in pages_of(given_ranges) if page not in touched]
    assert all(part.num_bytes > 0 for part in left)
