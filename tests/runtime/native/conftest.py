"""Each instruction set of the native library under test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from qwonnx.runtime.native.library import NativeLibrary, select_instructions

# test_emulated_instructions.py runs these tests with others.
INSTRUCTIONS = os.environ.get("QWONNX_TEST_NATIVE_INSTRUCTIONS", "fastest avx2 scalar").split()


@pytest.fixture(params=INSTRUCTIONS)
def instructions(request: pytest.FixtureRequest, library: NativeLibrary) -> Iterator[str]:
    """Each test runs with this processor's kernels, with AVX2's where it has better ones, and with the plain ones."""
    name = str(request.param)
    if name == "avx2" and (library.instructions == name or not select_instructions(library, name)):
        pytest.skip("the fastest kernels are AVX2's, or the processor is another one")
    assert select_instructions(library, "" if name == "fastest" else name)
    yield name
    select_instructions(library, "")
