"""The native library under test: the installed one, else one built for this run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native.build import BuildError, build, find_compiler
from qwonnx.runtime.native.library import VARIABLE, NativeLibrary, native_library, select_instructions


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeLibrary]:
    with pytest.MonkeyPatch.context() as patch:
        try:
            found = native_library()
        except NativeKernelsError as missing:
            try:
                compiler = find_compiler()
            except BuildError as error:
                pytest.skip(str(error))
            if compiler is None:
                pytest.skip(f"{missing}, and there is no C++ compiler")
            path = tmp_path_factory.mktemp("native") / "library.so"
            build(path, compiler)
            patch.setenv(VARIABLE, str(path))
            found = native_library()
        yield found


@pytest.fixture(params=["fastest", "scalar"])
def instructions(request: pytest.FixtureRequest, library: NativeLibrary) -> Iterator[str]:
    """Each test runs with this processor's kernels and with the plain ones."""
    name = str(request.param)
    assert select_instructions(library, "" if name == "fastest" else name)
    yield name
    select_instructions(library, "")
