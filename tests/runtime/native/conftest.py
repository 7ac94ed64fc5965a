"""Each instruction set of the native library under test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwonnx.runtime.native.library import NativeLibrary, select_instructions


@pytest.fixture(params=["fastest", "scalar"])
def instructions(request: pytest.FixtureRequest, library: NativeLibrary) -> Iterator[str]:
    """Each test runs with this processor's kernels and with the plain ones."""
    name = str(request.param)
    assert select_instructions(library, "" if name == "fastest" else name)
    yield name
    select_instructions(library, "")
