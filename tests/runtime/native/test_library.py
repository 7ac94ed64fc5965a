"""Which library is loaded, and what is said when it cannot be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from qwonnx.runtime.errors import NativeKernelsError
from qwonnx.runtime.native import build as build_module
from qwonnx.runtime.native.build import BuildError, Compiler, build, find_compiler, sources_digest
from qwonnx.runtime.native.library import (
    INSTRUCTIONS_VARIABLE,
    VARIABLE,
    NativeLibrary,
    native_library,
    select_instructions,
)

pytestmark = pytest.mark.fast


def test_the_library_says_which_kernels_it_uses(library: NativeLibrary) -> None:
    assert library.instructions in ("amx", "avx512", "avx2", "neon", "scalar")
    assert select_instructions(library, "scalar")
    assert not select_instructions(library, "abacus")
    assert select_instructions(library, "")


def test_registration_counts(library: NativeLibrary) -> None:
    for _ in range(2):
        library.register(onnxruntime.SessionOptions())


def test_the_variable_names_another_library(
    library: NativeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.so"
    shutil.copy(library.path, other)
    monkeypatch.setenv(VARIABLE, str(other))
    assert native_library().path == other


def test_the_variable_names_another_instruction_set(library: NativeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(library.path))
    monkeypatch.setenv(INSTRUCTIONS_VARIABLE, "scalar")
    assert native_library().instructions == "scalar"
    monkeypatch.setenv(INSTRUCTIONS_VARIABLE, "abacus")
    with pytest.raises(NativeKernelsError, match=r"QWONNX_NATIVE_INSTRUCTIONS is 'abacus', which .* does not have"):
        native_library()
    assert select_instructions(library, "")


def test_a_missing_library_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(NativeKernelsError, match=r"none\.so: QWONNX_NATIVE_LIBRARY names it"):
        native_library()


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + bytes(60)])
def test_a_file_that_is_no_library_is_an_error(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.so"
    path.write_bytes(content)
    monkeypatch.setenv(VARIABLE, str(path))
    with pytest.raises(NativeKernelsError, match="is not a library of native kernels"):
        native_library()


def test_a_library_of_something_else_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = find_compiler()
    if compiler is None or "zig" in str(compiler):
        pytest.skip("there is no system compiler")
    source, path = tmp_path / "other.cpp", tmp_path / "other.so"
    source.write_text("int other() { return 1; }", encoding="utf-8")
    subprocess.run([*compiler.link_command, "-fPIC", str(source), "-o", str(path)], check=True)
    monkeypatch.setenv(VARIABLE, str(path))
    with pytest.raises(NativeKernelsError, match="is not a library of native kernels"):
        native_library()


def test_the_digest_follows_every_source(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text("1", encoding="utf-8")
    first = sources_digest(tmp_path)
    (tmp_path / "b.h").write_text("", encoding="utf-8")
    second = sources_digest(tmp_path)
    (tmp_path / "a.cpp").write_text("2", encoding="utf-8")
    assert len({first, second, sources_digest(tmp_path)}) == 3


def test_a_build_needs_the_standard_library_alone() -> None:
    """setuptools runs it in an environment that has no other package."""
    words = [sys.executable, "-I", "-S", build_module.__file__, "--help"]
    assert "aarch64-linux-gnu" in subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="fails"):
        build(tmp_path / "library.so", Compiler(("false",), ("false",)))
    with pytest.raises(BuildError, match="cannot be run"):
        build(tmp_path / "library.so", Compiler(("/nowhere/c++",), ("false",)))
    assert list(tmp_path.iterdir()) == []


def test_a_named_compiler_that_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++ -m64")
    with pytest.raises(BuildError, match="CXX is '/nowhere/c\\+\\+ -m64', which does not run"):
        find_compiler()
