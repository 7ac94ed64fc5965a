"""Each instruction set of the native library under test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from qwonnx.runtime.native.library import NativeLibrary, select_instructions

# test_emulated_instructions.py runs these tests with others.
INSTRUCTIONS = os.environ.get("QWONNX_TEST_NATIVE_INSTRUCTIONS", "fastest scalar").split()


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest, library: NativeLibrary) -> Iterator[str]:
    """Each test runs with this processor's kernels and with the plain ones."""
    name = str(request.param)
    assert select_instructions(library, "" if name == "fastest" else name)
    yield name
    select_instructions(library, "")
